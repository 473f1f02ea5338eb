"""A small web service: says hello, and whether it is well."""

import os

from bottle import Bottle, run

app = Bottle()


@app.get("/")
def hello() -> dict[str, str]:
    """Say hello and who is serving."""
    return {"hello": "world", "uid": str(os.getuid())}


@app.get("/health")
def health() -> str:
    """Tell a load balancer that all is well."""
    return "ok\n"


if __name__ == "__main__":
    run(app, host=os.environ.get("HOST", "0.0.0.0"), port=int(os.environ["PORT"]))
