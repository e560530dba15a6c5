package message

// AuthAnnouncement is one authentication method that the sender of SUPPORTED_AUTH_METHODS accepts
// (RFC 9593, section 3.2).
type AuthAnnouncement struct {
	Method AuthMethod
	// Link is the number, from 1, of the authority in the sender's CERTREQ payloads that the method
	// is meant for; 0: any, or it is not about certificates.
	Link uint8
	// Algorithm is the AlgorithmIdentifier in DER, with method 14; empty otherwise.
	Algorithm []byte
}

// maxAnnouncement is the longest one: its length is one octet.
const maxAnnouncement = 255

// withoutLink tells that a method is announced in the form of two octets: it has nothing to do with
// certificates.
func (a *AuthAnnouncement) withoutLink() bool {
	return a.Link == 0 && len(a.Algorithm) == 0 && (a.Method == AuthPSK || a.Method == AuthNull)
}

// NewSupportedAuthMethods returns N(SUPPORTED_AUTH_METHODS). Announcements that do not fit, with an
// Algorithm of more than 252 octets, are left out.
func NewSupportedAuthMethods(list []AuthAnnouncement) *Notify {
	n := &Notify{Type: NotifySupportedAuthMethods}
	for i := range list {
		a := &list[i]
		switch size := 3 + len(a.Algorithm); {
		case a.withoutLink():
			n.Data = append(n.Data, 2, byte(a.Method))
		case size <= maxAnnouncement:
			n.Data = append(append(n.Data, byte(size), byte(a.Method), a.Link), a.Algorithm...)
		}
	}
	return n
}

// AuthAnnouncements returns the list of N(SUPPORTED_AUTH_METHODS), which may be empty (RFC 9593,
// section 3.1). Errors: *SyntaxError, *LimitError.
func (p *Notify) AuthAnnouncements() ([]AuthAnnouncement, error) {
	r := reader{payload: PayloadNotify, b: p.Data}
	var out []AuthAnnouncement
	for len(r.b) > 0 && r.err == nil {
		if len(out) == MaxAuthMethods {
			return nil, &LimitError{Payload: PayloadNotify, What: "authentication methods", Max: MaxAuthMethods, Got: MaxAuthMethods + 1}
		}
		size := int(r.u8("the length of an announcement"))
		if size < 2 {
			r.fail("length of an announcement", "at least 2", size)
			break
		}
		a := AuthAnnouncement{Method: AuthMethod(r.u8("an authentication method"))}
		if size > 2 {
			a.Link = r.u8("a link to a certification authority")
			a.Algorithm = r.take("an AlgorithmIdentifier", size-3)
		}
		out = append(out, a)
	}
	if r.err != nil {
		return nil, r.err
	}
	return out, nil
}
