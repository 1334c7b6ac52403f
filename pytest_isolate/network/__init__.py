"""Network policy: rules to maps, counters, flows, events, host names, redirects."""
