package policy

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// Bounds of a policy file. A file that exceeds one is refused with a message that names the bound.
const (
	MaxFileSize    = 32 << 20 // bytes of the JWS, and of its payload
	MaxZones       = 64
	MaxPrefixes    = 1024 // addresses in one list (zone prefixes, from, to, local, remote)
	MaxSelectors   = 255  // traffic selectors of one side of a connection (RFC 7296, section 3.13: one octet)
	MaxServices    = 256
	MaxPeers       = 10_000
	MaxGateways    = 16
	MaxConnections = 20_000
	MaxFlows       = 200_000   // flows in all connections together
	MaxPorts       = 256       // entries in one flow's list of ports
	MaxEntries     = 1_000_000 // from × to × ports in all flows together
	MaxTests       = 10_000
	MaxSuites      = 32
	MaxAnchors     = 64 // certificates, or CRLs, in one list
	MaxNesting     = 8  // prefixes inside one another, on one side of the flows
)

// Format is the version of the document's format that this package reads and writes.
const Format = 1

// Document is the content of a policy file. The JSON names are the field tags; docs/policy.md
// describes each field and docs/policy.schema.json is the machine-readable form. Fields without
// omitempty must be there.
type Document struct {
	Format    int       `json:"format"`
	Issuer    string    `json:"issuer"`
	Device    Device    `json:"device"`
	Serial    uint64    `json:"serial"`
	NotBefore time.Time `json:"not_before"`
	NotAfter  time.Time `json:"not_after"`

	Suites    Suites    `json:"suites"`
	Lifetimes Lifetimes `json:"lifetimes,omitzero"`
	Zones     []Zone    `json:"zones"`

	// Revocation is what has to be known about a peer's certificates: RevocationIfKnown or
	// RevocationRequired; empty: RevocationIfKnown.
	Revocation string `json:"revocation,omitempty"`

	DeviceAnchors []string `json:"device_anchors,omitempty"` // PEM, one certificate each
	DeviceCRLs    []string `json:"device_crls,omitempty"`    // PEM, one CRL each

	Services    []Service    `json:"services"`
	Peers       []Peer       `json:"peers"`
	Connections []Connection `json:"connections"`
	Tests       []Test       `json:"tests,omitempty"`

	payload []byte // what was parsed, for line numbers; nil for a document made in memory
	digest  Digest // SHA-256 of the payload; zero for a document made in memory
	table   *Table // set by Verify
}

// Device names the one device that a policy is for.
type Device struct {
	ID          string `json:"id"`          // identity in the device certificate, such as a.devices.example
	Fingerprint string `json:"fingerprint"` // "sha256:" + hex of the SHA-256 of the device certificate's DER
}

// What has to be known about the revocation of a peer's certificates.
const (
	// RevocationIfKnown: whoever a list or a responder names is refused; that nothing is known is no
	// obstacle. Short lives of certificates bound the harm.
	RevocationIfKnown = "if-known"
	// RevocationRequired: about every certificate below the anchor there must be a current list, in the
	// policy or where the certificate says, or a current OCSP response, from the peer or its responder.
	RevocationRequired = "required"
)

// Suites are the allowed algorithms, strongest first, in the strings that ike/suite parses.
type Suites struct {
	IKE []string `json:"ike"`
	ESP []string `json:"esp"`
}

// Lifetimes bound the age of keys. A zero field means the default: 8 h, 1 h, no limit by bytes
// and packets beyond the algorithm's own, 30 s.
type Lifetimes struct {
	IKE          Duration `json:"ike,omitzero"`
	Child        Duration `json:"child,omitzero"`
	ChildBytes   uint64   `json:"child_bytes,omitempty"`   // bytes of inner packets
	ChildPackets uint64   `json:"child_packets,omitempty"` // packets
	Liveness     Duration `json:"liveness,omitzero"`       // silence before the peer is probed
}

// Zone levels (ISO/TR 11636, 3.1, 3.2, 3.13).
const (
	LevelHSZ = "HSZ" // high security: no exchange with the outside but certain remote maintenance
	LevelSZ  = "SZ"  // security: limited exchange
	LevelDMZ = "DMZ" // any exchange
)

// Zone is a part of the facility's own network.
type Zone struct {
	Name       string   `json:"name"`
	Level      string   `json:"level"`
	Prefixes   []string `json:"prefixes"`
	Interfaces []string `json:"interfaces"`
}

// Service categories (ISO/TR 11636, 5.1).
const (
	CategoryInformation    = "information-provision"
	CategoryInternet       = "internet"
	CategoryStorageRelay   = "storage-relay"
	CategoryProcessing     = "processing"
	CategoryMaintenance    = "remote-maintenance"
	CategoryAuthentication = "authentication-audit"
)

// How the members of a service authenticate after, or instead of, the device round.
const (
	AuthCertificate = "certificate" // device certificate, then service certificate
	AuthPSK         = "psk"         // pre-shared key pushed by the service provider
)

// Service is one VPN service (group) that the facility has joined.
type Service struct {
	Name     string   `json:"name"`
	Category string   `json:"category"`
	Anchors  []string `json:"anchors,omitempty"` // PEM; required for AuthCertificate
	CRLs     []string `json:"crls,omitempty"`    // PEM
	Auth     string   `json:"auth,omitempty"`    // empty: AuthCertificate
	PSK      Secret   `json:"psk,omitzero"`      // base64; required for AuthPSK
}

// Peer is another facility's router.
type Peer struct {
	Name     string   `json:"name"`
	Gateways []string `json:"gateways"` // address, or address:port ([v6]:port); port 500 when not given
	DeviceID string   `json:"device_id"`
	ESP      string   `json:"esp,omitempty"`   // ESPUDP or ESPNative; empty: ESPUDP
	Moves    string   `json:"moves,omitempty"` // one of Moves…; empty: MovesNamed with gateways, MovesAnywhere without
}

// Where a peer may move with an IKE SA that stands (RFC 4555). Wherever it may not, it has to prove all
// rounds anew.
const (
	// MovesNamed: to an address of its gateways.
	MovesNamed = "named"
	// MovesAnywhere: to any address at which it gets what is sent to it.
	MovesAnywhere = "anywhere"
	// MovesNever: MOBIKE is off.
	MovesNever = "never"
)

// How the packets of a peer's connections travel.
const (
	// ESPUDP: in UDP (RFC 3948) with or without a NAT on the way, which offload makes faster.
	ESPUDP = "udp"
	// ESPNative: as IP protocol 50, unless there is a NAT on the way, or the peer asks for UDP.
	ESPNative = "native"
)

// When a connection is set up.
const (
	StartOnDemand = "on-demand"
	StartManual   = "manual"
	StartAlways   = "always"
)

// Connection is a contract with a peer, for a service.
type Connection struct {
	Name      string   `json:"name"`
	Peer      string   `json:"peer"`
	Service   string   `json:"service"`
	ServiceID string   `json:"service_id,omitempty"` // the peer's identity in its service certificate; required for AuthCertificate
	Start     string   `json:"start"`
	Idle      Duration `json:"idle,omitzero"`    // zero: never ended for idleness
	Local     []string `json:"local,omitempty"`  // traffic selectors; empty: union of the flows' local addresses
	Remote    []string `json:"remote,omitempty"` // traffic selectors; empty: union of the flows' remote addresses

	PPK   string `json:"ppk,omitempty"`    // PPKOff, PPKOptional or PPKRequired; empty: PPKOff
	PPKID string `json:"ppk_id,omitempty"` // names the key; the key itself is brought to both devices by hand

	FirstChild string `json:"first_child,omitempty"` // FirstChildWithIKE or FirstChildOwn; empty: FirstChildWithIKE

	Flows []FlowRule `json:"flows"`
}

// Whether a postquantum preshared key (RFC 8784) is mixed into the keys of a connection.
const (
	// PPKOff: none is.
	PPKOff = "off"
	// PPKOptional: one is where both devices have it.
	PPKOptional = "optional"
	// PPKRequired: without it there is no connection.
	PPKRequired = "required"
)

// How the first CHILD SA of an IKE SA gets its keys.
const (
	// FirstChildWithIKE: from the key exchange of the IKE SA, one round trip less.
	FirstChildWithIKE = "with-ike"
	// FirstChildOwn: from a key exchange of its own, behind that of the IKE SA (RFC 6023).
	FirstChildOwn = "own-exchange"
)

// Who may open a flow.
const (
	DirectionIn  = "in"  // the remote side opens: from is remote, to is local
	DirectionOut = "out" // the local side opens: from is local, to is remote
)

// FlowRule allows flows to be opened; their replies are allowed as replies only.
type FlowRule struct {
	Name      string   `json:"name"`
	From      []string `json:"from"` // addresses or prefixes
	To        []string `json:"to"`
	Protocol  string   `json:"protocol"`        // tcp, udp, icmp, icmpv6 (echo only), any, or a number
	Ports     []string `json:"ports,omitempty"` // of To; "104" or "5000-5010"; required for tcp and udp
	Direction string   `json:"direction"`
}

// What a Test expects.
const (
	ExpectAllow = "allow"
	ExpectDeny  = "deny"
)

// Test is a flow that must be allowed, or denied, to be opened; a policy whose tests fail is refused.
type Test struct {
	Name       string `json:"name"`
	From       string `json:"from"`
	To         string `json:"to"`
	Protocol   string `json:"protocol"`
	Port       uint16 `json:"port,omitempty"` // destination port; none for protocols without ports
	Connection string `json:"connection,omitempty"`
	Expect     string `json:"expect"`
}

// MarshalJSON writes the payload's form: a required list that is nil in memory is [], not null.
func (d Document) MarshalJSON() ([]byte, error) {
	type plainDocument Document // without this method
	p := plainDocument(d)
	p.Suites = Suites{IKE: orEmpty(p.Suites.IKE), ESP: orEmpty(p.Suites.ESP)}
	p.Zones = orEmpty(p.Zones)
	for i := range p.Zones {
		p.Zones[i].Prefixes, p.Zones[i].Interfaces = orEmpty(p.Zones[i].Prefixes), orEmpty(p.Zones[i].Interfaces)
	}
	p.Services = orEmpty(p.Services)
	p.Peers = orEmpty(p.Peers)
	for i := range p.Peers {
		p.Peers[i].Gateways = orEmpty(p.Peers[i].Gateways)
	}
	p.Connections = orEmpty(p.Connections)
	for i := range p.Connections {
		flows := orEmpty(p.Connections[i].Flows)
		for j := range flows {
			flows[j].From, flows[j].To = orEmpty(flows[j].From), orEmpty(flows[j].To)
		}
		p.Connections[i].Flows = flows
	}
	return json.Marshal(p)
}

// orEmpty returns a copy that is not nil.
func orEmpty[T any](list []T) []T { return append([]T{}, list...) }

// Table returns the compiled policy. It is nil for a document that did not come from Verify.
func (d *Document) Table() *Table { return d.table }

// Digest returns the SHA-256 of the signed payload; zero for a document made in memory.
func (d *Document) Digest() Digest { return d.digest }

// Digest is a SHA-256 value, written as "sha256:" and 64 lower-case hex digits.
type Digest [32]byte

func digestOf(b []byte) Digest { return sha256.Sum256(b) }

// IsZero reports whether the digest was never set.
func (d Digest) IsZero() bool { return d == Digest{} }

// String returns the text form.
func (d Digest) String() string { return "sha256:" + hex.EncodeToString(d[:]) }

// MarshalText implements encoding.TextMarshaler.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Digest) UnmarshalText(text []byte) error {
	v, err := ParseDigest(string(text))
	if err == nil {
		*d = v
	}
	return err
}

// ParseDigest reads the text form.
func ParseDigest(s string) (Digest, error) {
	var d Digest
	const prefix = "sha256:"
	if len(s) != len(prefix)+64 || s[:len(prefix)] != prefix {
		return Digest{}, fmt.Errorf("expected %q and 64 hex digits, came %q", prefix, clip(s))
	}
	for _, c := range []byte(s[len(prefix):]) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return Digest{}, fmt.Errorf("expected lower-case hex digits after %q, came %q", prefix, clip(s))
		}
	}
	if _, err := hex.Decode(d[:], []byte(s[len(prefix):])); err != nil {
		return Digest{}, err
	}
	return d, nil
}

// Duration is a time.Duration written like Go's, such as "30s" or "8h".
type Duration time.Duration

// String returns the Go form.
func (d Duration) String() string { return time.Duration(d).String() }

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("expected a duration such as \"30s\", \"5m\" or \"8h\", came %q", clip(string(text)))
	}
	*d = Duration(v)
	return nil
}

// Secret is key material. It is never shown by fmt; in JSON it is base64 (standard, padded).
type Secret struct{ b []byte }

// NewSecret makes a Secret of a copy of b.
func NewSecret(b []byte) Secret { return Secret{append([]byte(nil), b...)} }

// Bytes returns a copy of the key material.
func (s Secret) Bytes() []byte { return append([]byte(nil), s.b...) }

// Len returns the length in bytes.
func (s Secret) Len() int { return len(s.b) }

// IsZero reports whether there is no key material.
func (s Secret) IsZero() bool { return len(s.b) == 0 }

// Wipe overwrites the key material.
func (s Secret) Wipe() { clear(s.b) }

// String hides the key material.
func (s Secret) String() string { return "[secret]" }

// Format hides the key material from every verb.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "[secret]") }

// MarshalJSON writes base64: the document is signed, and sealed by whoever carries it.
func (s Secret) MarshalJSON() ([]byte, error) {
	return json.Marshal(base64.StdEncoding.EncodeToString(s.b))
}

// UnmarshalText implements encoding.TextUnmarshaler. The error does not repeat the text.
func (s *Secret) UnmarshalText(text []byte) error {
	b, err := base64.StdEncoding.Strict().DecodeString(string(text))
	if err != nil {
		return errors.New("expected base64 (standard alphabet, padded), came something else (not shown, it is a secret)")
	}
	s.b = b
	return nil
}

func clip(s string) string {
	const limit = 80
	if len(s) > limit {
		return s[:limit] + "…"
	}
	return s
}
