package token

import (
	"fmt"

	"github.com/miekg/pkcs11"

	"wardgate/internal/certs"
	"wardgate/pkichip/chipproto"
)

// Init initialises a token: the one with that label when erase is set, otherwise the first that
// is not initialised. The PINs are those that were handed over.
func (t *Token) Init(name string, erase bool) (chipproto.TokenInfo, *Error) {
	none := chipproto.TokenInfo{}
	if name == "" || len(name) > 32 || trim(name) != name {
		return none, fail(chipproto.CodeBadRequest, fmt.Sprintf("expected a label of 1 to 32 octets, got %s", certs.Quote(name)), "choose a shorter label")
	}
	if t.cfg.PIN.officer == nil || t.cfg.PIN.typed == nil {
		return none, fail(chipproto.CodePINSource, "initialising a token takes the security officer's PIN and a new user PIN", "run `wardgate token init`")
	}
	t.life.Lock()
	err := t.initialise(name, erase)
	t.life.Unlock()
	if err != nil {
		return none, err
	}
	t.setLabel(name)
	t.mu.Lock()
	t.refused = ""
	t.mu.Unlock()
	if err := t.reopen(-1); err != nil {
		return none, err
	}
	return t.Info(), nil
}

func (t *Token) initialise(name string, erase bool) *Error {
	if !t.started {
		if err := t.p.Initialize(); err != nil {
			return wrap("C_Initialize", err)
		}
		t.started = true
	}
	slots, e := t.p.GetSlotList(true)
	if e != nil {
		return wrap("C_GetSlotList", e)
	}
	target, free, found := uint(0), false, false
	for _, s := range slots {
		i, err := t.p.GetTokenInfo(s)
		switch {
		case err != nil:
		case i.Flags&pkcs11.CKF_TOKEN_INITIALIZED != 0 && trim(i.Label) == name:
			if !erase {
				return fail(chipproto.CodeExists, fmt.Sprintf("there is a token with the label %s already", certs.Quote(name)), "choose another label, or --erase to destroy everything on it")
			}
			target, found = s, true
		case i.Flags&pkcs11.CKF_TOKEN_INITIALIZED == 0 && !free && !found:
			target, free = s, true
		}
	}
	if !found && !free {
		return fail(chipproto.CodeNoToken, "there is no token that is not initialised yet", "put a new one in, or use --erase with the label of one that may be destroyed")
	}
	if e := t.cfg.PIN.officer.use(func(pin string) error { return t.p.InitToken(target, pin, name) }); e != nil {
		return wrap("C_InitToken", e)
	}
	// SoftHSM gives the new token another slot, seen after a new start.
	t.shutdown()
	if err := t.p.Initialize(); err != nil {
		return wrap("C_Initialize", err)
	}
	t.started = true
	t.setLabel(name)
	slot, _, err := t.find()
	if err != nil {
		return err
	}
	s, e := t.p.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
	if e != nil {
		return wrap("C_OpenSession", e)
	}
	defer func() { _ = t.p.CloseSession(s) }() // shutdown follows anyway
	if e := t.cfg.PIN.officer.use(func(pin string) error { return t.p.Login(s, pkcs11.CKU_SO, pin) }); e != nil {
		return wrap(whileLogin, e)
	}
	if e := t.cfg.PIN.typed.use(func(pin string) error { return t.p.InitPIN(s, pin) }); e != nil {
		return wrap("C_InitPIN", e)
	}
	if e := t.p.Logout(s); e != nil {
		return wrap("C_Logout", e)
	}
	return nil
}
