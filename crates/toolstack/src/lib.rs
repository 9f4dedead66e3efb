//! Lifecycles of guests and their stubdomains as named steps, each with its undo.
