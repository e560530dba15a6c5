/* A PKCS#11 module for tests: passes everything on to the module in $REAL_MODULE, except for the
 * faults whose names stand in the file $FAULTS at that moment:
 *
 *   hang-sign    C_Sign never returns          crash-sign   C_Sign ends the process
 *   hang-info    C_GetTokenInfo never returns  full         C_CreateObject: CKR_DEVICE_MEMORY
 *   final-try    one PIN try left              locked       the PIN is locked
 *   count-low    wrong PINs were tried         soft-key     keys claim to be extractable
 *   logged-out   C_Sign: CKR_USER_NOT_LOGGED_IN, once for each change of the file
 *
 * Every C_Login appends a line to $LOGINS.
 */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define CK_PTR *
#define CK_DECLARE_FUNCTION(returnType, name) returnType name
#define CK_DECLARE_FUNCTION_POINTER(returnType, name) returnType(*name)
#define CK_CALLBACK_FUNCTION(returnType, name) returnType(*name)
#ifndef NULL_PTR
#define NULL_PTR 0
#endif
#include "pkcs11.h"

static CK_FUNCTION_LIST_PTR real;
static CK_FUNCTION_LIST ours;
static long last_logout;

static int fault(const char *name) {
	char buf[256] = {0};
	FILE *f = fopen(getenv("FAULTS"), "r");
	if (!f) return 0;
	size_t n = fread(buf, 1, sizeof buf - 1, f);
	(void)n;
	fclose(f);
	return strstr(buf, name) != NULL;
}

static CK_RV faulty_sign(CK_SESSION_HANDLE s, CK_BYTE_PTR d, CK_ULONG dl, CK_BYTE_PTR sig, CK_ULONG_PTR sl) {
	while (fault("hang-sign")) sleep(1);
	if (fault("crash-sign")) abort();
	if (fault("logged-out")) {
		struct stat st;
		if (stat(getenv("FAULTS"), &st) == 0 && st.st_mtim.tv_nsec != last_logout) {
			last_logout = st.st_mtim.tv_nsec;
			return CKR_USER_NOT_LOGGED_IN;
		}
	}
	return real->C_Sign(s, d, dl, sig, sl);
}

static CK_RV faulty_info(CK_SLOT_ID s, CK_TOKEN_INFO_PTR i) {
	while (fault("hang-info")) sleep(1);
	CK_RV rv = real->C_GetTokenInfo(s, i);
	if (rv == CKR_OK) {
		if (fault("count-low")) i->flags |= CKF_USER_PIN_COUNT_LOW;
		if (fault("final-try")) i->flags |= CKF_USER_PIN_FINAL_TRY;
		if (fault("locked")) i->flags |= CKF_USER_PIN_LOCKED;
	}
	return rv;
}

static CK_RV faulty_login(CK_SESSION_HANDLE s, CK_USER_TYPE u, CK_UTF8CHAR_PTR p, CK_ULONG n) {
	FILE *f = fopen(getenv("LOGINS"), "a");
	if (f) {
		fputs("login\n", f);
		fclose(f);
	}
	if (fault("locked")) return CKR_PIN_LOCKED;
	return real->C_Login(s, u, p, n);
}

static CK_RV faulty_create(CK_SESSION_HANDLE s, CK_ATTRIBUTE_PTR a, CK_ULONG n, CK_OBJECT_HANDLE_PTR h) {
	if (fault("full")) return CKR_DEVICE_MEMORY;
	return real->C_CreateObject(s, a, n, h);
}

static CK_RV faulty_get(CK_SESSION_HANDLE s, CK_OBJECT_HANDLE h, CK_ATTRIBUTE_PTR a, CK_ULONG n) {
	CK_RV rv = real->C_GetAttributeValue(s, h, a, n);
	if (rv == CKR_OK && fault("soft-key"))
		for (CK_ULONG i = 0; i < n; i++)
			if (a[i].type == CKA_EXTRACTABLE && a[i].pValue) *(CK_BBOOL *)a[i].pValue = CK_TRUE;
	return rv;
}

CK_RV C_GetFunctionList(CK_FUNCTION_LIST_PTR_PTR list) {
	if (!real) {
		void *lib = dlopen(getenv("REAL_MODULE"), RTLD_NOW);
		if (!lib) return CKR_GENERAL_ERROR;
		CK_RV (*get)(CK_FUNCTION_LIST_PTR_PTR) = (CK_RV(*)(CK_FUNCTION_LIST_PTR_PTR))dlsym(lib, "C_GetFunctionList");
		if (!get || get(&real) != CKR_OK) return CKR_GENERAL_ERROR;
		ours = *real;
		ours.C_Sign = faulty_sign;
		ours.C_GetTokenInfo = faulty_info;
		ours.C_Login = faulty_login;
		ours.C_CreateObject = faulty_create;
		ours.C_GetAttributeValue = faulty_get;
	}
	*list = &ours;
	return CKR_OK;
}
