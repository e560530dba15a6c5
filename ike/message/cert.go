package message

// Cert is the Certificate payload (RFC 7296, section 3.6).
type Cert struct {
	Generic
	Encoding CertEncoding
	Data     []byte // CertX509Signature: one certificate in DER
}

// PayloadType implements Payload.
func (p *Cert) PayloadType() PayloadType { return PayloadCERT }

func parseCert(g Generic, r *reader) *Cert {
	p := &Cert{Generic: g, Encoding: CertEncoding(r.u8("the certificate encoding"))}
	p.Data = r.rest()
	return p
}

func (p *Cert) appendBody(dst []byte) ([]byte, error) {
	return append(append(dst, byte(p.Encoding)), p.Data...), nil
}

// AuthorityLen is the size of one entry of a CERTREQ: the SHA-1 hash of the authority's
// SubjectPublicKeyInfo (RFC 7296, section 3.7).
const AuthorityLen = 20

// CertReq is the Certificate Request payload (RFC 7296, section 3.7).
type CertReq struct {
	Generic
	Encoding CertEncoding
	Data     []byte // CertX509Signature: concatenated hashes of AuthorityLen octets; may be empty
}

// PayloadType implements Payload.
func (p *CertReq) PayloadType() PayloadType { return PayloadCERTREQ }

// Authorities returns the hashes of the wanted authorities. They are a hint only: an
// incomplete hash at the end is dropped.
func (p *CertReq) Authorities() [][AuthorityLen]byte {
	out := make([][AuthorityLen]byte, len(p.Data)/AuthorityLen)
	for i := range out {
		copy(out[i][:], p.Data[i*AuthorityLen:])
	}
	return out
}

func parseCertReq(g Generic, r *reader) *CertReq {
	p := &CertReq{Generic: g, Encoding: CertEncoding(r.u8("the certificate encoding"))}
	p.Data = r.rest()
	return p
}

func (p *CertReq) appendBody(dst []byte) ([]byte, error) {
	return append(append(dst, byte(p.Encoding)), p.Data...), nil
}
