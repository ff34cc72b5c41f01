"""Makes a model's card of what its source and its file say. Pure; every input is hostile.

One module reads one kind of source: `metadata` the file, `hub` a repo of the Hub, `civitai` what
Civitai's API says. `clean` bounds their texts.
"""
