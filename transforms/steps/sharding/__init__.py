"""The step that lays the fids of a batch out by table and parameter server."""
