package policy

import (
	"strings"

	"wardgate/internal/certs"
)

// weak are parts of suite names that no policy may name, with the reason (RFC 8221, RFC 8247,
// CHAN-3: nothing weaker is ever negotiated). ike/suite knows which of the others exist.
var weak = map[string]string{
	"null": "no encryption", "des": "56-bit key", "3des": "64-bit blocks", "blowfish": "64-bit blocks", "blowfish128": "64-bit blocks",
	"blowfish192": "64-bit blocks", "blowfish256": "64-bit blocks", "cast128": "64-bit blocks", "cast": "64-bit blocks", "idea": "64-bit blocks",
	"rc4": "broken", "rc5": "64-bit blocks", "md5": "broken", "md5_128": "broken", "sha": "SHA-1", "sha1": "SHA-1", "sha1_160": "SHA-1", "aesxcbc": "not in RFC 8247's list for new use",
	"prfmd5": "broken", "prfsha": "SHA-1", "prfsha1": "SHA-1", "prfaesxcbc": "not in RFC 8247's list for new use", "none": "no protection",
	"modp768": "too small", "modp1024": "too small", "modp1536": "too small", "modp1024s160": "too small", "modp2048s224": "of unknown origin (RFC 8247)",
	"modp2048s256": "of unknown origin (RFC 8247)", "ecp192": "too small", "ecp224": "too small", "ecp224bp": "too small",
}

// weakPart returns why a part of a suite name is refused, or "".
func weakPart(part string) string {
	if why, ok := weak[part]; ok {
		return why
	}
	for _, tag := range []string{"gcm8", "gcm64", "gcm12", "gcm96", "ccm8", "ccm64", "ccm12", "ccm96"} {
		if strings.HasSuffix(part, tag) {
			return "truncated authentication tag"
		}
	}
	if strings.Contains(part, "gmac") {
		return "no encryption"
	}
	return ""
}

// suites checks that suites are well-formed and not weak.
func (c *compiler) suites() {
	for _, side := range []struct {
		key  string
		list []string
	}{{"ike", c.doc.Suites.IKE}, {"esp", c.doc.Suites.ESP}} {
		p := c.root.at("suites").at(side.key)
		c.count(p, len(side.list), 1, MaxSuites)
		seen := make(map[string]bool)
		for i, s := range side.list {
			ok := s != "" && len(s) <= 128
			for _, r := range []byte(s) {
				ok = ok && (r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-' || r == '_')
			}
			parts := strings.Split(s, "-")
			for _, part := range parts {
				ok = ok && part != ""
			}
			if !ok {
				c.fault(p.nth(i), "a suite in lower case such as \"aes256gcm16-prfsha384-x25519\"", certs.Quote(s), "")
				continue
			}
			for _, part := range parts {
				if why := weakPart(part); why != "" {
					c.fault(p.nth(i), "algorithms that current recommendations allow (RFC 8221, RFC 8247)", s+" with "+part+": "+why, "use for example aes256gcm16 with prfsha384 and x25519")
				}
			}
			if seen[s] {
				c.fault(p.nth(i), "each suite once", s+" a second time", "remove it")
			}
			seen[s] = true
		}
	}
}
