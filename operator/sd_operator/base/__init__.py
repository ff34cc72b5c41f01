"""What every wing may use: settings, logs, metrics, times and texts for people."""
