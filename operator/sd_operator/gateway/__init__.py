"""The gateway: the vendor's REST API and a gallery, for the StableDiffusionModel resources.

The vendor is the hosted service that this gateway replaces (docs/gateway.md).
"""
