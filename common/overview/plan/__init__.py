"""`beit plan`: the parts of a plan that know no stage: its table, its JSON, rates measured on this machine."""
