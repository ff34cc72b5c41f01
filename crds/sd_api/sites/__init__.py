"""Reads what Civitai and the Hub say about a model. Pure; every answer is hostile.

The loader asks them when it loads a model, and the gateway before: both read the answers here.
`*_answers` read the JSON of an API, `*_card` make model cards of it, and `clean` limits texts.
"""
