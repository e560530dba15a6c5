package pkichip

import (
	"errors"
	"fmt"
	"strings"

	"wardgate/pkichip/chipproto"
)

// What can be wrong with the token or the chip process. Errors of this package are *Error; use
// errors.Is with these.
var (
	ErrTokenRemoved   = errors.New("token not there")                              // removed, or never there
	ErrNoToken        = errors.New("no such token")                                // never there
	ErrPIN            = errors.New("PIN refused")                                  // any of the reasons below; see Error.TriesLeft
	ErrPINWrong       = errors.New("wrong PIN")                                    // was tried once
	ErrPINNotRetried  = errors.New("PIN is known to be wrong")                     // was not tried again
	ErrPINLocked      = errors.New("PIN locked")                                   // by the token
	ErrPINLastTry     = errors.New("one PIN try left")                             // and not spent without a person
	ErrPINSource      = errors.New("PIN cannot be read")                           // file, credential or variable
	ErrChipRestarting = errors.New("chip process is restarting")                   // try again in a moment
	ErrChipHung       = errors.New("chip process does not answer")                 // it has been killed
	ErrClosed         = errors.New("chip is closed")                               // by Close
	ErrModule         = errors.New("PKCS#11 module fails")                         // cannot be loaded, or fails as a whole
	ErrNoKey          = errors.New("no such key on the token")                     //
	ErrNoDevice       = errors.New("token has no device key and certificate")      // layer 1
	ErrDeviceBroken   = errors.New("device key and certificate do not match")      // layer 1
	ErrKeyNotOnToken  = errors.New("the certificate's key is not on the token")    //
	ErrUntrusted      = errors.New("certificate is not trusted")                   // see Error.Class
	ErrNotBound       = errors.New("certificate is not bound to this device")      // RFC 9763
	ErrExists         = errors.New("there is one already")                         //
	ErrTokenFull      = errors.New("no room on the token")                         //
	ErrUnsupported    = errors.New("the token cannot do that")                     //
	ErrTokenFailed    = errors.New("token error")                                  // any other CKR_… value
	ErrBusy           = errors.New("too many requests to the token")               //
	ErrReadOnly       = errors.New("token is write-protected")                     //
	ErrBadRequest     = errors.New("request the chip process does not understand") // a mistake of ours
)

// Error is an error of the token or of the chip process.
type Error struct {
	Text      string // what happened
	Do        string // what to do about it; may be empty
	Op        string // the PKCS#11 function that failed, such as "C_Login"; may be empty
	RV        uint64 // its CK_RV; 0 when it was not the module
	TriesLeft int    // PIN tries left; -1 when the token does not say
	Class     string // why a certificate was refused, such as "unknown-ca" (internal/certs.Class)

	kinds []error
	code  chipproto.Code
}

// Error returns what happened and what to do.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Text)
	if e.Do != "" {
		b.WriteString("; " + e.Do)
	}
	return b.String()
}

// Is reports whether target is one of the kinds of e.
func (e *Error) Is(target error) bool {
	for _, k := range e.kinds {
		if k == target { //nolint:errorlint // sentinels are compared as themselves
			return true
		}
	}
	return false
}

var kindsOf = map[chipproto.Code][]error{
	chipproto.CodeInternal:      {ErrBadRequest},
	chipproto.CodeBadRequest:    {ErrBadRequest},
	chipproto.CodeModule:        {ErrModule},
	chipproto.CodeNoToken:       {ErrNoToken, ErrTokenRemoved},
	chipproto.CodeRemoved:       {ErrTokenRemoved},
	chipproto.CodePINWrong:      {ErrPINWrong, ErrPIN},
	chipproto.CodePINNotRetried: {ErrPINNotRetried, ErrPIN},
	chipproto.CodePINLocked:     {ErrPINLocked, ErrPIN},
	chipproto.CodePINLastTry:    {ErrPINLastTry, ErrPIN},
	chipproto.CodePINSource:     {ErrPINSource, ErrPIN},
	chipproto.CodeNoKey:         {ErrNoKey},
	chipproto.CodeNoDevice:      {ErrNoDevice},
	chipproto.CodeDeviceBroken:  {ErrDeviceBroken},
	chipproto.CodeKeyNotOnToken: {ErrKeyNotOnToken},
	chipproto.CodeUntrusted:     {ErrUntrusted},
	chipproto.CodeNotBound:      {ErrNotBound},
	chipproto.CodeExists:        {ErrExists},
	chipproto.CodeFull:          {ErrTokenFull},
	chipproto.CodeUnsupported:   {ErrUnsupported},
	chipproto.CodeToken:         {ErrTokenFailed},
	chipproto.CodeBusy:          {ErrBusy},
	chipproto.CodeReadOnly:      {ErrReadOnly},
}

func fromMessage(m *chipproto.Message) *Error {
	return &Error{
		Text: m.Text, Do: m.Do, Op: m.Op, RV: m.RV, TriesLeft: int(m.Tries), Class: m.Class,
		kinds: kindsOf[m.Code], code: m.Code,
	}
}

// processError is an error of the process itself.
func processError(kind error, why, do string) *Error {
	text := kind.Error()
	if why != "" {
		text = fmt.Sprintf("%s: %s", text, why)
	}
	return &Error{Text: text, Do: do, TriesLeft: -1, kinds: []error{kind}}
}
