package certs

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"net/netip"
	"strings"
	"unicode/utf8"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// IDType is the type of an IKE identification payload (RFC 7296, section 3.5; IANA numbers).
type IDType uint8

// The identification types that a certificate can vouch for, and KEY_ID, which none can.
const (
	IDIPv4Addr  IDType = 1
	IDFQDN      IDType = 2
	IDRFC822    IDType = 3
	IDIPv6Addr  IDType = 5
	IDDERASN1DN IDType = 9
	IDDERASN1GN IDType = 10
	IDKeyID     IDType = 11
)

// String returns the name in RFC 7296.
func (t IDType) String() string {
	switch t {
	case IDIPv4Addr:
		return "ID_IPV4_ADDR"
	case IDFQDN:
		return "ID_FQDN"
	case IDRFC822:
		return "ID_RFC822_ADDR"
	case IDIPv6Addr:
		return "ID_IPV6_ADDR"
	case IDDERASN1DN:
		return "ID_DER_ASN1_DN"
	case IDDERASN1GN:
		return "ID_DER_ASN1_GN"
	case IDKeyID:
		return "ID_KEY_ID"
	}
	return fmt.Sprintf("ID type %d", uint8(t))
}

// ID is an identity as an IKE peer claims it: a type and its octets (RFC 7296, section 3.5).
type ID struct {
	Type IDType
	Data []byte
}

// String returns the identity fit for a message: names quoted and escaped, addresses in their
// usual form, anything else in hexadecimal.
func (id ID) String() string {
	switch id.Type {
	case IDFQDN, IDRFC822:
		return Quote(string(id.Data))
	case IDIPv4Addr, IDIPv6Addr:
		if a, ok := netip.AddrFromSlice(id.Data); ok {
			return a.String()
		}
	case IDDERASN1DN:
		if s, ok := dnString(id.Data); ok {
			return Quote(s)
		}
	case IDDERASN1GN, IDKeyID:
	}
	d := id.Data
	if len(d) > 32 {
		d = d[:32]
	}
	return fmt.Sprintf("%v %x", id.Type, d)
}

// MatchID returns nil when cert vouches for id as RFC 4945, section 3.1 lays down: FQDN against a
// dNSName (ASCII case ignored; no wildcards, RFC 4945 section 3.1.2), RFC822_ADDR against an
// rfc822Name (local part exact, domain without case), IPv4 and IPv6 addresses against an
// iPAddress, DER_ASN1_DN against the subject. Otherwise an *Error of class IDMismatch that says
// which names the certificate has.
func MatchID(cert *x509.Certificate, id ID) error {
	mismatch := func(expected, do string) error {
		return &Error{Class: IDMismatch, Subject: SubjectOf(cert), Expected: expected, Got: namesOf(cert), Do: do}
	}
	const do = "correct the identity in the configuration or have the certificate issued with it"
	switch id.Type {
	case IDFQDN:
		if name := string(id.Data); validName(name) {
			for _, d := range cert.DNSNames {
				if strings.EqualFold(d, name) && validName(d) {
					return nil
				}
			}
		}
		return mismatch("the dNSName "+id.String(), do)
	case IDRFC822:
		for _, m := range cert.EmailAddresses {
			if sameMailbox(m, string(id.Data)) {
				return nil
			}
		}
		return mismatch("the rfc822Name "+id.String(), do)
	case IDIPv4Addr, IDIPv6Addr:
		want, ok := netip.AddrFromSlice(id.Data)
		if !ok || want.Is4() != (id.Type == IDIPv4Addr) {
			return mismatch(fmt.Sprintf("an address of %v's length, the peer claimed %d octets", id.Type, len(id.Data)), "the peer is at fault")
		}
		for _, ip := range cert.IPAddresses {
			if a, ok := netip.AddrFromSlice(ip); ok && a.Unmap() == want.Unmap() {
				return nil
			}
		}
		return mismatch("the iPAddress "+want.String(), do)
	case IDDERASN1DN:
		if sameDN(id.Data, cert.RawSubject) {
			return nil
		}
		return mismatch("the subject "+id.String(), do)
	case IDDERASN1GN, IDKeyID:
	}
	return mismatch("an identity that a certificate can vouch for", fmt.Sprintf("%v cannot be used with certificates: claim an FQDN, RFC822, address or DN identity", id.Type))
}

// validName accepts what can be a host name here: not empty, printable ASCII without blanks, and
// no wildcard (RFC 4945, section 3.1.2: no wildcards in dNSName for IKE).
func validName(s string) bool {
	if s == "" || len(s) > 253 {
		return false
	}
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' || s[i] == '*' {
			return false
		}
	}
	return true
}

func sameMailbox(a, b string) bool {
	i, j := strings.LastIndexByte(a, '@'), strings.LastIndexByte(b, '@')
	if i <= 0 || j <= 0 {
		return false
	}
	return a[:i] == b[:j] && validName(a[i+1:]) && validName(b[j+1:]) && strings.EqualFold(a[i+1:], b[j+1:])
}

// namesOf lists what a certificate vouches for, escaped and bounded.
func namesOf(cert *x509.Certificate) string {
	var n []string
	for _, d := range cert.DNSNames {
		n = append(n, "dNSName "+Quote(d))
	}
	for _, m := range cert.EmailAddresses {
		n = append(n, "rfc822Name "+Quote(m))
	}
	for _, ip := range cert.IPAddresses {
		n = append(n, "iPAddress "+ip.String())
	}
	n = append(n, "subject "+SubjectOf(cert))
	const most = 6
	if len(n) > most {
		n = append(n[:most], fmt.Sprintf("and %d more", len(n)-most))
	}
	return strings.Join(n, ", ")
}

// SubjectOf returns the subject of cert fit for a message: the distinguished name, quoted,
// escaped and bounded.
func SubjectOf(cert *x509.Certificate) string {
	if s, ok := dnString(cert.RawSubject); ok && s != "" {
		return Quote(s)
	}
	if len(cert.DNSNames) > 0 {
		return Quote(cert.DNSNames[0])
	}
	return "with an empty subject"
}

// attribute is one AttributeTypeAndValue of a distinguished name.
type attribute struct {
	oid   string
	tag   cbasn1.Tag
	value []byte
}

// parseDN splits the DER of a Name (RFC 5280, section 4.1.2.4) into its RDNs.
func parseDN(der []byte) ([][]attribute, bool) {
	s := cryptobyte.String(der)
	var seq cryptobyte.String
	if !s.ReadASN1(&seq, cbasn1.SEQUENCE) || !s.Empty() {
		return nil, false
	}
	var rdns [][]attribute
	for !seq.Empty() {
		var set cryptobyte.String
		if !seq.ReadASN1(&set, cbasn1.SET) || set.Empty() {
			return nil, false
		}
		var rdn []attribute
		for !set.Empty() {
			var atv, value cryptobyte.String
			var oid asn1.ObjectIdentifier
			var tag cbasn1.Tag
			if !set.ReadASN1(&atv, cbasn1.SEQUENCE) || !atv.ReadASN1ObjectIdentifier(&oid) ||
				!atv.ReadAnyASN1(&value, &tag) || !atv.Empty() {
				return nil, false
			}
			rdn = append(rdn, attribute{oid.String(), tag, value})
		}
		rdns = append(rdns, rdn)
	}
	return rdns, true
}

// sameDN compares two encoded names: octet by octet, and failing that as RFC 5280, section 7.1
// does for PrintableString and UTF8String in ASCII (case and runs of blanks do not count).
func sameDN(a, b []byte) bool {
	if bytes.Equal(a, b) {
		_, ok := parseDN(a)
		return ok
	}
	x, ok1 := parseDN(a)
	y, ok2 := parseDN(b)
	if !ok1 || !ok2 || len(x) != len(y) {
		return false
	}
	for i := range x {
		if len(x[i]) != len(y[i]) {
			return false
		}
		for j := range x[i] {
			if !sameAttribute(x[i][j], y[i][j]) {
				return false
			}
		}
	}
	return true
}

func sameAttribute(a, b attribute) bool {
	if a.oid != b.oid {
		return false
	}
	if a.tag == b.tag && bytes.Equal(a.value, b.value) {
		return true
	}
	x, ok1 := foldText(a)
	y, ok2 := foldText(b)
	return ok1 && ok2 && x == y
}

func foldText(a attribute) (string, bool) {
	if a.tag != cbasn1.PrintableString && a.tag != cbasn1.UTF8String {
		return "", false
	}
	for _, c := range a.value {
		if c >= utf8.RuneSelf {
			return "", false
		}
	}
	return strings.ToLower(strings.Join(strings.Fields(string(a.value)), " ")), true
}

var attributeNames = map[string]string{
	"2.5.4.3": "CN", "2.5.4.5": "serialNumber", "2.5.4.6": "C", "2.5.4.7": "L", "2.5.4.8": "ST",
	"2.5.4.10": "O", "2.5.4.11": "OU", "0.9.2342.19200300.100.1.25": "DC",
}

// dnString renders an encoded name for people, not for comparison.
func dnString(der []byte) (string, bool) {
	rdns, ok := parseDN(der)
	if !ok {
		return "", false
	}
	var parts []string
	for _, rdn := range rdns {
		for _, a := range rdn {
			name := attributeNames[a.oid]
			if name == "" {
				name = a.oid
			}
			parts = append(parts, name+"="+string(a.value))
		}
	}
	return strings.Join(parts, ", "), true
}
