"""Makes a model's card from what its source and its file say. Pure; every input is hostile.

Each kind of source has a module: `metadata` reads the file, `hub` a repo of the Hub, `civitai` the
facts from Civitai's API. `clean` limits their texts.
"""
