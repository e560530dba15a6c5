package ikeload

import (
	"crypto"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"

	"wardgate/ike"
	"wardgate/ike/suite"
	"wardgate/internal/labca"
)

// Job is what the responder is told: everything but whom its keys belong to.
type Job struct {
	Local   netip.Addr
	Clients int      // connections, one for each initiator
	IKE     []string // proposals
	ESP     []string
	PSK     string  // instead of rounds
	Rounds  []Round // one or two
	Chip    *Chip   // where the keys are; nil: in Rounds
	Status  string  // path of the Unix socket that [Ask] asks

	// Tickets, when there is one, is the secret of the responder's tickets (RFC 5723); Chains is the file
	// where it keeps the certificates behind them when it is restarted.
	Tickets []byte
	Chains  string
}

// Round is one authentication round of the responder's.
type Round struct {
	ID      string
	Role    string
	Key     []byte   // PKCS #8 PEM
	Chain   [][]byte // DER, leaf first
	Anchor  []byte   // DER: whom the initiator's certificate must come from
	Clients string   // the initiators' identity, with %d for their number
}

// Chip is a token with the responder's keys, the device's and one service's.
type Chip struct {
	Binary, Module, Label, PINFile, Service string
	Env                                     []string
}

// The protected networks: the responder's, and an address for each initiator.
var responderNet = netip.MustParsePrefix("10.48.0.0/24")

func clientNet(i int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 64 + byte(i>>16), byte(i >> 8), byte(i)}), 32)
}

// TS are the two networks as a peer that knows no single initiator writes them.
const (
	ResponderTS = "10.48.0.0/24"
	ClientTS    = "10.64.0.0/10"
)

// PSKClient and PSKResponder are the identities where a pre-shared key is used.
const (
	PSKClient    = "i%d.devices.example"
	PSKResponder = "r.devices.example"
)

func clientID(pattern string, i int) (ike.Identity, error) {
	return ike.ParseIdentity(strings.Replace(pattern, "%d", fmt.Sprint(i), 1))
}

// peers makes n connections: those of the responder, or those of the initiators.
func peers(n int, ikes, esps []string, each func(i int, p *ike.PeerConfig) error) ([]*ike.PeerConfig, error) {
	ikeProps, err := suite.ParseProposals(suite.ProtocolIKE, ikes)
	if err != nil {
		return nil, err
	}
	espProps, err := suite.ParseProposals(suite.ProtocolESP, esps)
	if err != nil {
		return nil, err
	}
	out := make([]*ike.PeerConfig, n)
	for i := range out {
		p := &ike.PeerConfig{
			Name: fmt.Sprintf("c%d", i), Proposals: ikeProps,
			Children: []ike.ChildConfig{{Name: "net", Proposals: espProps}},
			// What is measured is set-ups: nobody asks whether the other one lives meanwhile.
			LivenessInterval: -1, KeepaliveInterval: -1,
		}
		if err := each(i, p); err != nil {
			return nil, err
		}
		out[i] = p
	}
	return out, nil
}

// signers returns the keys of the rounds where they lie in the job itself.
func (j *Job) signers() ([]crypto.Signer, error) {
	var out []crypto.Signer
	for _, r := range j.Rounds {
		f, err := os.CreateTemp("", "wardgate-key-")
		if err != nil {
			return nil, err
		}
		name := f.Name()
		_, err = f.Write(r.Key)
		f.Close()
		var key crypto.Signer
		if err == nil {
			key, err = labca.ReadKey(name)
		}
		os.Remove(name)
		if err != nil {
			return nil, fmt.Errorf("key of %s: %w", r.ID, err)
		}
		out = append(out, key)
	}
	return out, nil
}

// peers are the responder's connections.
func (j *Job) peers(keys []crypto.Signer) ([]*ike.PeerConfig, error) {
	var local []ike.LocalAuth
	var anchors []*x509.Certificate
	if j.PSK != "" {
		id, err := ike.ParseIdentity(PSKResponder)
		if err != nil {
			return nil, err
		}
		local = []ike.LocalAuth{{ID: id, PSK: []byte(j.PSK)}}
	}
	for i, r := range j.Rounds {
		id, err := ike.ParseIdentity(r.ID)
		if err != nil {
			return nil, err
		}
		a, err := x509.ParseCertificate(r.Anchor)
		if err != nil {
			return nil, err
		}
		local = append(local, ike.LocalAuth{ID: id, Chain: r.Chain, Signer: keys[i], Role: r.Role})
		anchors = append(anchors, a)
	}
	return peers(j.Clients, j.IKE, j.ESP, func(i int, p *ike.PeerConfig) error {
		p.Local, p.LocalAuth = j.Local, local
		p.Children[0].LocalTS = []ike.Selector{ike.PrefixSelector(responderNet)}
		p.Children[0].RemoteTS = []ike.Selector{ike.PrefixSelector(clientNet(i))}
		if j.PSK != "" {
			id, err := clientID(PSKClient, i)
			p.RemoteAuth = []ike.RemoteAuth{{IDs: []ike.Identity{id}, PSK: []byte(j.PSK), RelatedToRound: -1}}
			return err
		}
		for k, r := range j.Rounds {
			id, err := clientID(r.Clients, i)
			if err != nil {
				return err
			}
			p.RemoteAuth = append(p.RemoteAuth, ike.RemoteAuth{IDs: []ike.Identity{id}, Anchors: anchors[k : k+1], RelatedToRound: k - 1, Role: r.Role})
		}
		return nil
	})
}

// Credential is a key with its certificate.
type Credential struct {
	Name  string
	Key   crypto.Signer
	Leaf  *x509.Certificate
	Chain [][]byte // with the leaf, DER
}

// Issue makes a key and has it certified; device is the certificate that a service's is bound to.
func Issue(ca *labca.Authority, name string, device *Credential) (*Credential, error) {
	key, err := labca.NewKey(labca.P256)
	if err != nil {
		return nil, err
	}
	r := labca.Request{Public: key.Public(), DNSNames: []string{name}, At: time.Now().Add(-time.Hour)}
	if device != nil {
		r.Device = device.Leaf.Raw
	}
	leaf, err := ca.Issue(r)
	if err != nil {
		return nil, err
	}
	return &Credential{name, key, leaf, append([][]byte{leaf.Raw}, labca.DER(ca.Intermediates())...)}, nil
}

// Round describes a round of the responder's; clients is [Round].Clients.
func (c *Credential) Round(ca *labca.Authority, role, clients string) (Round, error) {
	key, err := labca.MarshalKey(c.Key)
	return Round{ID: c.Name, Role: role, Key: key, Chain: c.Chain, Anchor: ca.Anchor().Raw, Clients: clients}, err
}

// findOut is how initiators find out soon that the responder was restarted.
var findOut = ike.Retransmit{Initial: time.Second, Factor: 1, Tries: 3}

// ClientPeers are the connections of the initiators: own are their credentials, by round and then
// by number. The responder's identities are in rounds.
func (j *Job) ClientPeers(local netip.Addr, own [][]*Credential) ([]*ike.PeerConfig, error) {
	anchors := make([]*x509.Certificate, len(j.Rounds))
	for i, r := range j.Rounds {
		a, err := x509.ParseCertificate(r.Anchor)
		if err != nil {
			return nil, err
		}
		anchors[i] = a
	}
	return peers(j.Clients, j.IKE, j.ESP, func(i int, p *ike.PeerConfig) error {
		p.Local, p.Remote = local, []netip.AddrPort{netip.AddrPortFrom(j.Local, 500)}
		if len(j.Tickets) > 0 {
			p.Retransmit = findOut
		}
		p.Children[0].LocalTS = []ike.Selector{ike.PrefixSelector(clientNet(i))}
		p.Children[0].RemoteTS = []ike.Selector{ike.PrefixSelector(responderNet)}
		if j.PSK != "" {
			mine, err := clientID(PSKClient, i)
			if err != nil {
				return err
			}
			theirs, err := ike.ParseIdentity(PSKResponder)
			p.LocalAuth = []ike.LocalAuth{{ID: mine, PSK: []byte(j.PSK)}}
			p.RemoteAuth = []ike.RemoteAuth{{IDs: []ike.Identity{theirs}, PSK: []byte(j.PSK), RelatedToRound: -1}}
			return err
		}
		for k, r := range j.Rounds {
			c := own[k][i]
			mine, err := ike.ParseIdentity(c.Name)
			if err != nil {
				return err
			}
			theirs, err := ike.ParseIdentity(r.ID)
			if err != nil {
				return err
			}
			p.LocalAuth = append(p.LocalAuth, ike.LocalAuth{ID: mine, Chain: c.Chain, Signer: c.Key, Role: r.Role})
			p.RemoteAuth = append(p.RemoteAuth, ike.RemoteAuth{IDs: []ike.Identity{theirs}, Anchors: anchors[k : k+1], RelatedToRound: k - 1, Role: r.Role})
		}
		return nil
	})
}

// Write puts the job into a file that its owner alone may read: it holds keys.
func (j *Job) Write(name string) error {
	text, err := json.Marshal(j)
	if err != nil {
		return err
	}
	return os.WriteFile(name, text, 0o600)
}

// ReadJob reads what Write wrote.
func ReadJob(name string) (*Job, error) {
	text, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	j := &Job{}
	if err := json.Unmarshal(text, j); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return j, nil
}
