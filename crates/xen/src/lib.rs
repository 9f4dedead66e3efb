//! Safe handles on the hypervisor: domains, event channels, grants, foreign memory, domain building; real and simulated.
