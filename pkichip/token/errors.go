package token

import (
	"errors"
	"fmt"

	"github.com/miekg/pkcs11"

	"wardgate/internal/certs"
	"wardgate/pkichip/chipproto"
)

// Error is what a request fails with; it becomes the reply's error fields.
type Error struct {
	Code   chipproto.Code
	Text   string
	Do     string
	Op     string // PKCS#11 function
	RV     uint64 // CK_RV
	Tries  int8   // -1: not known
	Class  string // of a refused certificate
	Source string // mark of the PIN source that was refused
}

// Error returns text and remedy.
func (e *Error) Error() string {
	if e.Do == "" {
		return e.Text
	}
	return e.Text + "; " + e.Do
}

func fail(code chipproto.Code, text, do string) *Error {
	return &Error{Code: code, Text: text, Do: do, Tries: -1}
}

// ckr is what a CK_RV means for the operator.
type ckr struct {
	name string
	code chipproto.Code
	text string
	do   string
}

// table says what the return values that matter mean (PKCS #11 v2.40, section 5.1 and 11.1).
var table = map[pkcs11.Error]ckr{
	pkcs11.CKR_HOST_MEMORY:                    {"CKR_HOST_MEMORY", chipproto.CodeModule, "the PKCS#11 module is out of memory", "restart the router; if it stays, tell the maker of the module"},
	pkcs11.CKR_SLOT_ID_INVALID:                {"CKR_SLOT_ID_INVALID", chipproto.CodeRemoved, "the token's slot is gone", "plug the reader or token in again"},
	pkcs11.CKR_GENERAL_ERROR:                  {"CKR_GENERAL_ERROR", chipproto.CodeToken, "the PKCS#11 module failed without saying why", "check the token and the module's configuration; the module's own log may say more"},
	pkcs11.CKR_FUNCTION_FAILED:                {"CKR_FUNCTION_FAILED", chipproto.CodeToken, "the token could not carry the operation out", "try again; if it stays, check the token"},
	pkcs11.CKR_ARGUMENTS_BAD:                  {"CKR_ARGUMENTS_BAD", chipproto.CodeToken, "the PKCS#11 module does not take the arguments", "the module may be too old: use a newer one"},
	pkcs11.CKR_ATTRIBUTE_READ_ONLY:            {"CKR_ATTRIBUTE_READ_ONLY", chipproto.CodeReadOnly, "the token does not let this be changed", "use a token that can be written to"},
	pkcs11.CKR_ATTRIBUTE_TYPE_INVALID:         {"CKR_ATTRIBUTE_TYPE_INVALID", chipproto.CodeUnsupported, "the token does not know an attribute that is needed", "use another kind of key or a newer module"},
	pkcs11.CKR_ATTRIBUTE_VALUE_INVALID:        {"CKR_ATTRIBUTE_VALUE_INVALID", chipproto.CodeUnsupported, "the token does not take a value, such as the curve or the length of the key", "use another kind of key: see `wardgate token check`"},
	pkcs11.CKR_DATA_INVALID:                   {"CKR_DATA_INVALID", chipproto.CodeToken, "the token does not sign this data", "use another kind of key"},
	pkcs11.CKR_DATA_LEN_RANGE:                 {"CKR_DATA_LEN_RANGE", chipproto.CodeToken, "the data is too long or too short for this key", "use a longer key or a shorter hash"},
	pkcs11.CKR_DEVICE_ERROR:                   {"CKR_DEVICE_ERROR", chipproto.CodeToken, "the token or its reader reports a fault", "take it out and put it back; if it stays, replace it"},
	pkcs11.CKR_DEVICE_MEMORY:                  {"CKR_DEVICE_MEMORY", chipproto.CodeFull, "there is no room left on the token", "delete a service that is not used any more, or use a larger token"},
	pkcs11.CKR_DEVICE_REMOVED:                 {"CKR_DEVICE_REMOVED", chipproto.CodeRemoved, "the token has been removed", "put it back"},
	pkcs11.CKR_FUNCTION_NOT_SUPPORTED:         {"CKR_FUNCTION_NOT_SUPPORTED", chipproto.CodeUnsupported, "the PKCS#11 module has no such function", "use another module"},
	pkcs11.CKR_KEY_HANDLE_INVALID:             {"CKR_KEY_HANDLE_INVALID", chipproto.CodeNoKey, "the key is not on the token any more", "check with `wardgate token list`"},
	pkcs11.CKR_KEY_TYPE_INCONSISTENT:          {"CKR_KEY_TYPE_INCONSISTENT", chipproto.CodeUnsupported, "the key is not of the kind that signs like this", "use another kind of key"},
	pkcs11.CKR_KEY_FUNCTION_NOT_PERMITTED:     {"CKR_KEY_FUNCTION_NOT_PERMITTED", chipproto.CodeUnsupported, "the key may not be used for signatures", "make a new key with `wardgate token csr`"},
	pkcs11.CKR_KEY_SIZE_RANGE:                 {"CKR_KEY_SIZE_RANGE", chipproto.CodeUnsupported, "the token does not take keys of this length", "use another kind of key"},
	pkcs11.CKR_MECHANISM_INVALID:              {"CKR_MECHANISM_INVALID", chipproto.CodeUnsupported, "the token cannot do this kind of signature or key", "use another kind of key: see `wardgate token check`"},
	pkcs11.CKR_MECHANISM_PARAM_INVALID:        {"CKR_MECHANISM_PARAM_INVALID", chipproto.CodeUnsupported, "the token does not take these parameters, such as the hash of RSA-PSS", "use another kind of key"},
	pkcs11.CKR_OBJECT_HANDLE_INVALID:          {"CKR_OBJECT_HANDLE_INVALID", chipproto.CodeNoKey, "the object is not on the token any more", "check with `wardgate token list`"},
	pkcs11.CKR_PIN_INCORRECT:                  {"CKR_PIN_INCORRECT", chipproto.CodePINWrong, "the token refuses the PIN", "correct the PIN; it is not tried again until it changes"},
	pkcs11.CKR_PIN_INVALID:                    {"CKR_PIN_INVALID", chipproto.CodePINWrong, "the PIN has characters that the token does not take", "correct the PIN"},
	pkcs11.CKR_PIN_LEN_RANGE:                  {"CKR_PIN_LEN_RANGE", chipproto.CodePINWrong, "the PIN is shorter or longer than the token takes", "correct the PIN"},
	pkcs11.CKR_PIN_EXPIRED:                    {"CKR_PIN_EXPIRED", chipproto.CodePINWrong, "the PIN has expired", "set a new PIN with the token's own tool"},
	pkcs11.CKR_PIN_LOCKED:                     {"CKR_PIN_LOCKED", chipproto.CodePINLocked, "the token has locked the PIN after too many wrong ones", "unlock it with the security officer's PIN and the token's own tool"},
	pkcs11.CKR_SESSION_CLOSED:                 {"CKR_SESSION_CLOSED", chipproto.CodeRemoved, "the session with the token was closed", "try again"},
	pkcs11.CKR_SESSION_COUNT:                  {"CKR_SESSION_COUNT", chipproto.CodeBusy, "the token has no more sessions", "end other programs that use the token"},
	pkcs11.CKR_SESSION_HANDLE_INVALID:         {"CKR_SESSION_HANDLE_INVALID", chipproto.CodeRemoved, "the session with the token has ended", "try again"},
	pkcs11.CKR_SESSION_READ_ONLY:              {"CKR_SESSION_READ_ONLY", chipproto.CodeReadOnly, "the token may only be read", "use a token that can be written to"},
	pkcs11.CKR_SESSION_EXISTS:                 {"CKR_SESSION_EXISTS", chipproto.CodeBusy, "another program uses the token", "end it, such as wardgated, and try again"},
	pkcs11.CKR_TEMPLATE_INCONSISTENT:          {"CKR_TEMPLATE_INCONSISTENT", chipproto.CodeUnsupported, "the token does not make objects like this", "use another kind of key: see `wardgate token check`"},
	pkcs11.CKR_TEMPLATE_INCOMPLETE:            {"CKR_TEMPLATE_INCOMPLETE", chipproto.CodeUnsupported, "the token wants to know more about the object", "use another module"},
	pkcs11.CKR_TOKEN_NOT_PRESENT:              {"CKR_TOKEN_NOT_PRESENT", chipproto.CodeRemoved, "there is no token in the slot", "put it back"},
	pkcs11.CKR_TOKEN_NOT_RECOGNIZED:           {"CKR_TOKEN_NOT_RECOGNIZED", chipproto.CodeToken, "the module does not know this kind of token", "use the module that the token's maker supplies"},
	pkcs11.CKR_TOKEN_WRITE_PROTECTED:          {"CKR_TOKEN_WRITE_PROTECTED", chipproto.CodeReadOnly, "the token is write-protected", "use a token that can be written to"},
	pkcs11.CKR_CURVE_NOT_SUPPORTED:            {"CKR_CURVE_NOT_SUPPORTED", chipproto.CodeUnsupported, "the token does not know the curve", "use another kind of key: see `wardgate token check`"},
	pkcs11.CKR_USER_ALREADY_LOGGED_IN:         {"CKR_USER_ALREADY_LOGGED_IN", chipproto.CodeToken, "the user is logged in already", "try again"},
	pkcs11.CKR_USER_NOT_LOGGED_IN:             {"CKR_USER_NOT_LOGGED_IN", chipproto.CodePINSource, "the token wants the PIN", "set pin_file, pin_credential or pin_env"},
	pkcs11.CKR_USER_PIN_NOT_INITIALIZED:       {"CKR_USER_PIN_NOT_INITIALIZED", chipproto.CodePINSource, "the token has no user PIN yet", "initialise it: `wardgate token init`"},
	pkcs11.CKR_USER_ANOTHER_ALREADY_LOGGED_IN: {"CKR_USER_ANOTHER_ALREADY_LOGGED_IN", chipproto.CodeBusy, "another user is logged in on the token", "end the program that is"},
	pkcs11.CKR_USER_TOO_MANY_TYPES:            {"CKR_USER_TOO_MANY_TYPES", chipproto.CodeBusy, "too many users are logged in on the token", "end the programs that are"},
	pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED:       {"CKR_CRYPTOKI_NOT_INITIALIZED", chipproto.CodeModule, "the PKCS#11 module is not ready", "try again"},
}

const whileLogin = "C_Login"

// wrap translates an error of the module. op is the PKCS#11 function.
func wrap(op string, err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	if o, ok := errors.AsType[*opError](err); ok {
		op = o.op
	}
	rv, ok := errors.AsType[pkcs11.Error](err)
	if !ok {
		return &Error{Code: chipproto.CodeInternal, Text: op + ": " + certs.Quote(err.Error()), Op: op, Tries: -1}
	}
	e := &Error{Code: chipproto.CodeToken, Op: op, RV: uint64(rv), Tries: -1}
	if t, ok := table[rv]; ok {
		e.Code, e.Text, e.Do = t.code, fmt.Sprintf("%s (%s: %s)", t.text, op, t.name), t.do
		return e
	}
	e.Text = fmt.Sprintf("the token answers with an error (%s: 0x%X)", op, uint64(rv))
	e.Do = "look the number up in the PKCS#11 standard or the module's manual"
	return e
}

// doubtful are return values after which it must be seen whether token and session still exist.
func doubtful(err error) bool {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Code == chipproto.CodeNoKey // SoftHSM finds nothing when its folder is gone
	}
	rv, ok := errors.AsType[pkcs11.Error](err)
	if !ok {
		return false
	}
	switch rv {
	case pkcs11.CKR_DEVICE_REMOVED, pkcs11.CKR_TOKEN_NOT_PRESENT, pkcs11.CKR_TOKEN_NOT_RECOGNIZED, pkcs11.CKR_SLOT_ID_INVALID,
		pkcs11.CKR_SESSION_HANDLE_INVALID, pkcs11.CKR_SESSION_CLOSED, pkcs11.CKR_DEVICE_ERROR, pkcs11.CKR_GENERAL_ERROR,
		pkcs11.CKR_FUNCTION_FAILED, pkcs11.CKR_OBJECT_HANDLE_INVALID, pkcs11.CKR_KEY_HANDLE_INVALID,
		pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED, pkcs11.CKR_USER_NOT_LOGGED_IN, pkcs11.CKR_OPERATION_NOT_INITIALIZED:
		return true
	}
	return false
}
