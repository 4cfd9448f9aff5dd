"""The domain library: plain functions over Arrow tables and NumPy arrays. Never imports dagster."""
