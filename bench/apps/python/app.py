import flask

app = flask.Flask(__name__)


@app.get("/")
def index():
    return f"python: flask {flask.__version__}\n"
