"""The units under a systemd that is booted for it."""
