/* What the bindings of this crate are generated from; see bindgen.args. */
#define XC_WANT_COMPAT_MAP_FOREIGN_API 1
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <xentoollog.h>
#include <xenctrl.h>
#include <xenguest.h>
#include <xenforeignmemory.h>
#include <xen/domctl.h>
#include <xen/sysctl.h>
#include <xen/sched.h>
#include <xen/version.h>
#include <xen/memory.h>
#include <xen/hvm/params.h>
#include <xen/hvm/hvm_info_table.h>
#include <xen/hvm/e820.h>

/* libxenguest calls it, and libxenctrl exports it, but no header that is installed declares it. */
int xc_get_pfn_type_batch(xc_interface *xch, uint32_t dom, unsigned int num, xen_pfn_t *arr);
