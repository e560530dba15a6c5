package main

import (
	"errors"

	"wardgate/pkichip"
	"wardgate/router/control"
)

// tokenKinds are the failures of the token with their stable codes. What the token or its rules
// refuse to take is refused (exit 3); everything else is a problem of the token (exit 5). The
// more special kind stands before the general one.
var tokenKinds = []struct {
	err  error
	code string
	kind control.Kind
}{
	{pkichip.ErrUntrusted, "certificate-untrusted", control.KindRefused},
	{pkichip.ErrNotBound, "certificate-not-bound", control.KindRefused},
	{pkichip.ErrKeyNotOnToken, "key-not-on-token", control.KindRefused},
	{pkichip.ErrExists, "exists-already", control.KindRefused},
	{pkichip.ErrNoToken, "no-such-token", control.KindToken},
	{pkichip.ErrTokenRemoved, "token-removed", control.KindToken},
	{pkichip.ErrPINWrong, "pin-wrong", control.KindToken},
	{pkichip.ErrPINNotRetried, "pin-not-retried", control.KindToken},
	{pkichip.ErrPINLocked, "pin-locked", control.KindToken},
	{pkichip.ErrPINLastTry, "pin-last-try", control.KindToken},
	{pkichip.ErrPINSource, "pin-source", control.KindToken},
	{pkichip.ErrPIN, "pin-refused", control.KindToken},
	{pkichip.ErrChipRestarting, "chip-restarting", control.KindToken},
	{pkichip.ErrChipHung, "chip-hung", control.KindToken},
	{pkichip.ErrClosed, "chip-closed", control.KindToken},
	{pkichip.ErrModule, "pkcs11-module", control.KindToken},
	{pkichip.ErrNoKey, "no-key", control.KindToken},
	{pkichip.ErrNoDevice, "no-device-key", control.KindToken},
	{pkichip.ErrDeviceBroken, "device-key-broken", control.KindToken},
	{pkichip.ErrTokenFull, "token-full", control.KindToken},
	{pkichip.ErrUnsupported, "token-cannot", control.KindToken},
	{pkichip.ErrTokenFailed, "token-error", control.KindToken},
	{pkichip.ErrBusy, "token-busy", control.KindToken},
	{pkichip.ErrReadOnly, "token-read-only", control.KindToken},
	{pkichip.ErrBadRequest, "chip-request", control.KindToken},
}

// tokenFailure gives a failure of the token the one form, or returns nil for any other.
func tokenFailure(err error) *control.Error {
	e := &control.Error{Kind: control.KindToken, Code: "token-error", Title: err.Error(), Hint: "see: wardgate token check --help"}
	var te *pkichip.Error
	isToken := errors.As(err, &te)
	if isToken {
		e.Title = te.Text
		if te.Do != "" {
			e.Hint = te.Do
		}
	}
	for _, k := range tokenKinds {
		if errors.Is(err, k.err) {
			e.Kind, e.Code = k.kind, k.code
			return e
		}
	}
	if !isToken {
		return nil
	}
	return e
}
