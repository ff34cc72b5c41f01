"""Makes a diffusers folder from a downloaded model.

run            converts a finished download
conversion     the options of a conversion
expansion      expands LyCORIS layers of a file to LoRA layers
plan/          plans the files to write, from headers alone
detect/        detects the kind of model in a file
write/         writes the planned files
tables/        data of each architecture
"""
