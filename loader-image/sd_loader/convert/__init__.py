"""Makes a diffusers folder from what was downloaded.

run            converts a finished download
conversion     the options of a conversion
by_diffusers   has diffusers convert what has no key table here
plan/          plans what is written, from headers alone
detect/        finds out what a file is
write/         writes what is planned
tables/        what is known of each architecture
"""
