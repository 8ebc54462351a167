"""The command `millrace records`: one module per action, which is imported only when it runs."""
