"""The clients of the Kubernetes API and of hosts that users name."""
