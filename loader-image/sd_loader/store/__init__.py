"""The shared volume: staging, ownership, publishing and removal of models.

    .staging/<uid>/<pod>/source        what a Pod downloads; another Pod may claim it
    .staging/<uid>/<pod>/out           what a Pod converts
    .store/<uid>/owner.json            whose folder this is
    .store/<uid>/<loadHash>/           a published version, with its receipt inside
    .blobs/sha256/<ab>/<digest>        one more name of a file that versions may share
    <modelId> -> .store/<uid>/<loadHash>

A process may be killed between any two system calls: every change that others can see is one
rename, and the next run picks up whatever the last one left.
"""
