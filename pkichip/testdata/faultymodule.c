/* A PKCS#11 module for tests: passes everything on to the module in $REAL_MODULE, except for the
 * faults whose names stand in the file $FAULTS at that moment:
 *
 *   hang-sign    C_Sign never returns          crash-sign   C_Sign ends the process (abort)
 *   segv-sign    C_Sign reads from nowhere     slow-key     C_GenerateKeyPair waits
 *   no-room 3    C_GenerateKeyPair: CKR_DEVICE_MEMORY when there are three private keys or more
 *   read-only    C_OpenSession for writing: CKR_TOKEN_WRITE_PROTECTED
 *   die-before 3 the third call that changes the token's content kills the process instead
 *   hang-info    C_GetTokenInfo never returns  full         C_CreateObject: CKR_DEVICE_MEMORY
 *   final-try    one PIN try left              locked       the PIN is locked
 *   count-low    wrong PINs were tried         soft-key     keys claim to be extractable
 *   logged-out   C_Sign: CKR_USER_NOT_LOGGED_IN, once for each change of the file
 *
 * Every C_Login appends a line to $LOGINS.
 */
#include <dlfcn.h>
#include <signal.h>
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

/* number returns what stands behind a fault's name, 0 when there is no such fault. */
static long number(const char *name) {
	char buf[256] = {0};
	FILE *f = fopen(getenv("FAULTS"), "r");
	if (!f) return 0;
	size_t n = fread(buf, 1, sizeof buf - 1, f);
	(void)n;
	fclose(f);
	char *at = strstr(buf, name);
	return at ? atol(at + strlen(name)) : 0;
}

static long changes, changes_since;

/* change counts the calls that change the content since $FAULTS was written. */
static void change(void) {
	struct stat st;
	if (stat(getenv("FAULTS"), &st) == 0 && st.st_mtim.tv_nsec != changes_since) {
		changes_since = st.st_mtim.tv_nsec;
		changes = 0;
	}
	long n = number("die-before");
	if (n && ++changes == n) {
		kill(getpid(), SIGKILL);
		for (;;) pause();
	}
}

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
	if (fault("segv-sign")) return *(volatile CK_BYTE *)8;
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
	change();
	return real->C_CreateObject(s, a, n, h);
}

static CK_RV faulty_destroy(CK_SESSION_HANDLE s, CK_OBJECT_HANDLE h) {
	change();
	return real->C_DestroyObject(s, h);
}

static CK_RV faulty_generate(CK_SESSION_HANDLE s, CK_MECHANISM_PTR m, CK_ATTRIBUTE_PTR pub, CK_ULONG npub, CK_ATTRIBUTE_PTR priv, CK_ULONG npriv,
			     CK_OBJECT_HANDLE_PTR hpub, CK_OBJECT_HANDLE_PTR hpriv) {
	while (fault("slow-key")) usleep(1000);
	long most = number("no-room");
	if (most) {
		CK_OBJECT_CLASS c = CKO_PRIVATE_KEY;
		CK_ATTRIBUTE all = {CKA_CLASS, &c, sizeof c};
		CK_OBJECT_HANDLE found[32];
		CK_ULONG n = 0;
		real->C_FindObjectsInit(s, &all, 1);
		real->C_FindObjects(s, found, 32, &n);
		real->C_FindObjectsFinal(s);
		if ((long)n >= most) return CKR_DEVICE_MEMORY;
	}
	change();
	return real->C_GenerateKeyPair(s, m, pub, npub, priv, npriv, hpub, hpriv);
}

static CK_RV faulty_open(CK_SLOT_ID slot, CK_FLAGS flags, CK_VOID_PTR app, CK_NOTIFY cb, CK_SESSION_HANDLE_PTR s) {
	if ((flags & CKF_RW_SESSION) && fault("read-only")) return CKR_TOKEN_WRITE_PROTECTED;
	return real->C_OpenSession(slot, flags, app, cb, s);
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
		ours.C_DestroyObject = faulty_destroy;
		ours.C_GenerateKeyPair = faulty_generate;
		ours.C_OpenSession = faulty_open;
		ours.C_GetAttributeValue = faulty_get;
	}
	*list = &ours;
	return CKR_OK;
}
