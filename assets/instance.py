"""`python -m assets.instance` prints the Dagster home that the command line and the UI share."""

from assets.launch import dagster_home

if __name__ == "__main__":
    print(dagster_home())
