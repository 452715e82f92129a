/* Everything: include this one, compile as C11 with -D_GNU_SOURCE, link with nothing but libc. */
#ifndef CHRONETIX_CHRONETIX_H
#define CHRONETIX_CHRONETIX_H

#include "abi.h"
#include "arena.h"
#include "clock.h"
#include "credit.h"
#include "doorbell.h"
#include "features.h"
#include "guard.h"
#include "failpoint.h"
#include "header.h"
#include "hints.h"
#include "hugepages.h"
#include "latest.h"
#include "memory.h"
#include "named.h"
#include "pace.h"
#include "ring.h"
#include "segments.h"
#include "spin.h"
#include "succession.h"
#include "view.h"

#endif
