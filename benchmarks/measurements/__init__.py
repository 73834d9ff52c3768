"""What probes, controller and step limits cost, and how far their numbers are right."""
