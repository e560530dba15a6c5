package message

// First returns the first payload of type T (such as *KE) in ps.
func First[T Payload](ps Payloads) (p T, ok bool) {
	for _, q := range ps {
		if p, ok = q.(T); ok {
			return p, true
		}
	}
	return p, false
}

// All returns all payloads of type T in ps, in order.
func All[T Payload](ps Payloads) []T {
	var out []T
	for _, q := range ps {
		if p, ok := q.(T); ok {
			out = append(out, p)
		}
	}
	return out
}

// first returns the first payload of type T, nil if there is none.
func first[T Payload](ps Payloads) T {
	p, _ := First[T](ps)
	return p
}

// Count returns the number of payloads of type t.
func (ps Payloads) Count(t PayloadType) int {
	n := 0
	for _, p := range ps {
		if p.PayloadType() == t {
			n++
		}
	}
	return n
}

// SA returns the first SA payload, nil if there is none. So do the next methods for theirs.
func (ps Payloads) SA() *SA { return first[*SA](ps) }

// KE returns the first KE payload or nil.
func (ps Payloads) KE() *KE { return first[*KE](ps) }

// Nonce returns the first Nonce payload or nil.
func (ps Payloads) Nonce() *Nonce { return first[*Nonce](ps) }

// Auth returns the first AUTH payload or nil.
func (ps Payloads) Auth() *Auth { return first[*Auth](ps) }

// CP returns the first CP payload or nil.
func (ps Payloads) CP() *CP { return first[*CP](ps) }

// EAP returns the first EAP payload or nil.
func (ps Payloads) EAP() *EAP { return first[*EAP](ps) }

// IDi returns the first IDi payload or nil.
func (ps Payloads) IDi() *ID { return ps.id(false) }

// IDr returns the first IDr payload or nil.
func (ps Payloads) IDr() *ID { return ps.id(true) }

func (ps Payloads) id(responder bool) *ID {
	for _, p := range ps {
		if id, ok := p.(*ID); ok && id.Responder == responder {
			return id
		}
	}
	return nil
}

// TSi returns the first TSi payload or nil.
func (ps Payloads) TSi() *TS { return ps.ts(false) }

// TSr returns the first TSr payload or nil.
func (ps Payloads) TSr() *TS { return ps.ts(true) }

func (ps Payloads) ts(responder bool) *TS {
	for _, p := range ps {
		if ts, ok := p.(*TS); ok && ts.Responder == responder {
			return ts
		}
	}
	return nil
}

// Certs returns the CERT payloads in order: the first one holds the end entity's certificate
// (RFC 7296, section 3.6).
func (ps Payloads) Certs() []*Cert { return All[*Cert](ps) }

// X509Chain returns the DER certificates of the CERT payloads with encoding 4, in order.
func (ps Payloads) X509Chain() [][]byte {
	var out [][]byte
	for _, c := range ps.Certs() {
		if c.Encoding == CertX509Signature {
			out = append(out, c.Data)
		}
	}
	return out
}

// CertReqs returns the CERTREQ payloads in order.
func (ps Payloads) CertReqs() []*CertReq { return All[*CertReq](ps) }

// Deletes returns the Delete payloads in order.
func (ps Payloads) Deletes() []*Delete { return All[*Delete](ps) }

// VendorIDs returns the Vendor ID payloads in order.
func (ps Payloads) VendorIDs() []*VendorID { return All[*VendorID](ps) }

// Notify returns the first notify of type t, nil if there is none.
func (ps Payloads) Notify(t NotifyType) *Notify {
	for _, p := range ps {
		if n, ok := p.(*Notify); ok && n.Type == t {
			return n
		}
	}
	return nil
}

// HasNotify reports whether there is a notify of type t.
func (ps Payloads) HasNotify(t NotifyType) bool { return ps.Notify(t) != nil }

// Notifies returns all notifies of type t, in order (NAT_DETECTION_SOURCE_IP may repeat).
func (ps Payloads) Notifies(t NotifyType) []*Notify {
	var out []*Notify
	for _, p := range ps {
		if n, ok := p.(*Notify); ok && n.Type == t {
			out = append(out, n)
		}
	}
	return out
}

// ErrorNotify returns the first notify of an error type, known or not, nil if there is none.
func (ps Payloads) ErrorNotify() *Notify {
	for _, p := range ps {
		if n, ok := p.(*Notify); ok && n.Type.IsError() {
			return n
		}
	}
	return nil
}

// PeerError returns the first error notify as a *PeerError, nil if there is none.
func (ps Payloads) PeerError() error { return ps.ErrorNotify().Err() }
