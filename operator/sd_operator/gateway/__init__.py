"""The gateway: the vendor's REST API, and the models in a browser. It creates the resources."""
