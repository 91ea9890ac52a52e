"""The web page: PIN, GEM, plain CLIP and the raw VLM side by side; pip install gradio.

python main.py --config=configs/demo.py                                             # http://127.0.0.1:7860
python main.py --config=configs/demo.py --config.port=8080 --config.most_names=4
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """How the page is served; every entry can be overridden on the command line."""
    config = ConfigDict()
    config.program = "demo"
    config.host = "127.0.0.1"  # this machine alone; 0.0.0.0 lets others in, without a password
    config.port = 7860
    config.insert = ""  # an adapter in the place of those that ship; of one model, for the others are refused
    config.most_megapixels = 50  # of an upload
    config.most_megabytes = 30
    config.most_names = 6
    config.most_stickers = 8
    config.queue = 16  # requests that wait; more are refused
    config.parallel = 2  # requests at work
    config.timeout = 120  # seconds until a request is given up
    return config
