package sp

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"wardgate/internal/certs"
)

// reference names a key on the token: the part of RFC 7512 that is needed for it, "pkcs11:" with object
// (CKA_LABEL), id (CKA_ID) and token (its label, which must be that of [token]). Where the PIN comes from
// and which module is used is in [token] alone.
type reference struct {
	object, token string
	id            []byte
}

// isReference tells a reference from the name of a file.
func isReference(s string) bool { return strings.HasPrefix(s, "pkcs11:") }

func parseReference(s string) (reference, error) {
	var r reference
	bad := func(expected, came string) (reference, error) {
		return reference{}, fmt.Errorf("reference to a key: expected %s, came %s", expected, came)
	}
	rest, ok := strings.CutPrefix(s, "pkcs11:")
	if !ok || len(s) > 1024 {
		return bad("pkcs11:object=LABEL, at most 1024 octets (RFC 7512)", certs.Quote(s))
	}
	if strings.Contains(rest, "?") { // there may be a PIN, which is for nobody's eyes
		return reference{}, errors.New("reference to a key: expected no attributes behind '?', came some; module and PIN belong to [token]")
	}
	seen := map[string]bool{}
	for part := range strings.SplitSeq(rest, ";") {
		name, value, _ := strings.Cut(part, "=")
		text, err := url.PathUnescape(value)
		if err != nil || value == "" || seen[name] {
			return bad("attributes NAME=VALUE, each once, with % and two hexadecimal digits for what is no letter", certs.Quote(part))
		}
		seen[name] = true
		switch name {
		case "object":
			r.object = text
		case "id":
			r.id = []byte(text)
		case "token":
			r.token = text
		case "type":
			if text != "private" {
				return bad("type=private", certs.Quote(part))
			}
		default:
			return bad("the attributes object, id, token and type", certs.Quote(name))
		}
	}
	if r.object == "" && len(r.id) == 0 {
		return bad("an object, an id, or both", certs.Quote(s))
	}
	return r, nil
}

// is reports whether a key is the one that is named.
func (r *reference) is(label string, id []byte) bool {
	return (r.object == "" || r.object == label) && (len(r.id) == 0 || bytes.Equal(r.id, id))
}

// String writes it with everything that RFC 7512, section 2.3, reserves escaped.
func (r *reference) String() string {
	var parts []string
	if r.token != "" {
		parts = append(parts, "token="+escape(r.token))
	}
	if r.object != "" {
		parts = append(parts, "object="+escape(r.object))
	}
	if len(r.id) > 0 {
		var b strings.Builder
		for _, c := range r.id {
			b.WriteString("%" + strings.ToUpper(hex.EncodeToString([]byte{c})))
		}
		parts = append(parts, "id="+b.String())
	}
	return "pkcs11:" + strings.Join(parts, ";")
}

func escape(s string) string {
	var b strings.Builder
	for i := range len(s) {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '.', c == '_', c == '~':
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

var errNoToken = errors.New("expected [token] with module and label for keys on a token, came none")
