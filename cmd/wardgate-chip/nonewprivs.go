package main

/*
#include <sys/prctl.h>

// "No new privileges" belongs to a thread and is inherited by the threads it makes. Set by Go code it
// would hold for whichever thread that code happens to run on; here, before the Go runtime has
// made a second one, it holds for all.
__attribute__((constructor)) static void noNewPrivileges(void) {
	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
}
*/
import "C"
