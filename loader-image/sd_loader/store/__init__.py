"""The shared volume: staging, ownership, publishing and removal of models.

    .staging/<uid>/<pod>/source        a Pod's download; another Pod may take it over
    .staging/<uid>/<pod>/out           a Pod's converted files
    .store/<uid>/owner.json            the model that owns this folder
    .store/<uid>/<loadHash>/           a published version, with its receipt inside
    .blobs/blake3/<ab>/<digest>        another hard link to a file that versions may share
    <modelId> -> .store/<uid>/<loadHash>

A process may be killed between any two system calls. Therefore every change that other processes
can see is one rename, and the next run continues from the state that the last run left.
"""
