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
