"""`kubectl sdm`: a kubectl plugin that lists, watches, reloads and diagnoses models.

It runs kubectl for every call to the cluster, so it uses kubectl's contexts, credentials and
permissions. It needs only the `cli` extra, not a Kubernetes client library.
"""
