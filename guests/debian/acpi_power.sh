#!/run/cellar/busybox sh
# guests/debian/acpi_power.sh: what the power button does (acpid calls it): the guest goes down by itself.
exec poweroff
