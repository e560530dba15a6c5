package token

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/miekg/pkcs11"

	"wardgate/pkichip/chipproto"
)

// change runs f, which changes the token's content, with what is on the token now. One change is
// made at a time; signatures and lists go on beside it in sessions of their own. That the token
// is full or may not be written to is also told as an event, because whoever asked may be a
// program that merely tries again.
func (t *Token) change(f func(s pkcs11.SessionHandle, c *content) error) *Error {
	t.writeMu.Lock()
	defer t.writeMu.Unlock()
	defer t.forgetAll()
	var have *content
	e := t.with(func(s pkcs11.SessionHandle) error {
		c, err := t.read(s)
		if err != nil {
			return err
		}
		have = c
		return f(s, c)
	})
	switch {
	case e == nil:
	case e.Code == chipproto.CodeFull:
		if have != nil {
			e.Do = have.room(t.cfg.Now())
		}
		t.event(chipproto.EventFull, e)
	case e.Code == chipproto.CodeReadOnly:
		t.event(chipproto.EventReadOnly, e)
	}
	return e
}

// orphan reports whether nothing uses a public key: its private key is gone. A power failure while
// a key is made or removed leaves one.
func (c *content) orphan(o *object) bool {
	return !slices.ContainsFunc(c.private, func(k object) bool { return k.is(o.label, o.id) })
}

// waits reports whether sweep would remove something.
func (c *content) waits(lbl string) bool {
	return slices.ContainsFunc(c.private, func(k object) bool { return k.label == lbl && c.certOf(&k) == nil }) ||
		slices.ContainsFunc(c.public, func(o object) bool { return o.label == lbl && c.orphan(&o) })
}

// sweep removes what a place has of keys that never got their certificate.
func (t *Token) sweep(s pkcs11.SessionHandle, c *content, lbl string) error {
	for i := range c.private {
		if k := &c.private[i]; k.label == lbl && c.certOf(k) == nil {
			if err := t.destroy(s, c, lbl, k.id); err != nil {
				return err
			}
		}
	}
	for i := range c.public {
		if o := &c.public[i]; o.label == lbl && c.orphan(o) {
			if err := t.p.DestroyObject(s, o.h); err != nil {
				return in("C_DestroyObject", err)
			}
		}
	}
	return nil
}

// room says what could be deleted to make room: what is of no use first.
func (c *content) room(now time.Time) string {
	const most = 5
	useless, used := []string{}, []string{}
	seen := map[string]bool{}
	for _, list := range [][]object{c.certs, c.private, c.public} {
		for i := range list {
			l, service, _ := parseLabel(list[i].label)
			if l != chipproto.LayerService || seen[service] {
				continue
			}
			seen[service] = true
			if why := c.useless(list[i].label, now); why != "" {
				useless = append(useless, fmt.Sprintf("%s (%s)", service, why))
			} else {
				used = append(used, service)
			}
		}
	}
	names := append(useless, used...)
	if len(names) == 0 {
		return "use a larger token"
	}
	more := ""
	if len(names) > most {
		names, more = names[:most], ", …"
	}
	return fmt.Sprintf("delete a service that is not used any more with `wardgate token service delete NAME`, or use a larger token; there is %s%s", strings.Join(names, ", "), more)
}

// useless says why nothing of a place is of use, or "".
func (c *content) useless(lbl string, now time.Time) string {
	why := "has only a key that waits for its certificate"
	for i := range c.certs {
		o := &c.certs[i]
		if o.label != lbl {
			continue
		}
		x, err := x509.ParseCertificate(o.der)
		key := slices.ContainsFunc(c.private, func(k object) bool { return bytes.Equal(k.id, o.id) && k.label == lbl })
		switch {
		case err != nil || !key:
			why = "its key is missing"
		case now.After(x.NotAfter):
			why = "expired on " + x.NotAfter.UTC().Format(time.DateOnly)
		default:
			return ""
		}
	}
	return why
}
