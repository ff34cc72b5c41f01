"""Reads what Civitai and the Hub say about a model. Pure; an answer may contain anything.

The gateway asks these sites when somebody looks up a link, and the loader when it loads a model.
Both read the answers with these modules: `*_answers` read the JSON of an API, `*_card` make model
cards from it, and `clean` limits texts.
"""
