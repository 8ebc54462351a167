"""The model server: versions, their loading, and TF Serving's API."""
