/*
 * Lets xl parse a file where no Xen runs: what opens Xen and xenstore succeeds with a handle that leads nowhere, and
 * the few questions that the parser has of the host are answered. Preloaded by src/xl.rs.
 */

static char handle[64];

void *xc_interface_open(void *logger, void *dombuild_logger, unsigned flags)
{
    return handle;
}

int xc_interface_close(void *interface)
{
    return 0;
}

void *xs_open(unsigned long flags)
{
    return handle;
}

void xs_close(void *store)
{
}

/* Not known; xl then assumes what it does by default. */
const void *libxl_get_version_info(void *context)
{
    return 0;
}

/* The caller has initialized it: a host that can do nothing in particular. */
int libxl_get_physinfo(void *context, void *info)
{
    return 0;
}

int xc_get_max_cpus(void *interface)
{
    return 512;
}

int xc_get_online_cpus(void *interface)
{
    return 512;
}

int xc_get_max_nodes(void *interface)
{
    return 1;
}
