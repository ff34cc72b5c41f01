"""The gateway: the vendor's REST API and a gallery of the models, on top of the resources."""
