package router

import (
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"time"

	"go.uber.org/zap"

	"wardgate/esp"
	"wardgate/ike"
	"wardgate/ike/suite"
	"wardgate/pkichip"
	"wardgate/policy"
	"wardgate/router/config"
)

// retransmit is quicker than RFC 7296, section 2.4 suggests for idle SAs: somebody waits at a
// modality for the first answer, and a connection that is given up comes back with the next
// packet. 0.5 + 0.9 + 1.6 + 2.9 + 5.2 + 9.4 + 17 s: about 38 s until a peer counts as dead.
var retransmit = ike.Retransmit{Initial: 500 * time.Millisecond, Factor: 1.8, Tries: 6}

var tcpModes = map[string]ike.TCPMode{
	config.TCPNever: ike.TCPNever, config.TCPFallback: ike.TCPFallback, config.TCPAlways: ike.TCPAlways,
}

// setPeers tells IKE which connections there are: those of the policy in force for which the
// token has what they need. IKE ends what is no longer among them.
func (r *Router) setPeers() {
	r.peersMu.Lock()
	defer r.peersMu.Unlock()
	now := time.Now()
	r.mu.Lock()
	creds, tokenErr := r.creds, r.tokenErr
	doc := r.doc
	conns := r.conns
	r.mu.Unlock()

	var peers []*ike.PeerConfig
	blocked := make(map[string]string)
	if doc == nil {
		for name := range conns {
			blocked[name] = "no valid policy is in force"
		}
	} else {
		table := doc.Table()
		for i := range table.Connections() {
			info := &table.Connections()[i]
			p, err := r.peerConfig(table, info, creds)
			if err != nil {
				why := err.Error()
				if tokenErr != nil {
					why = tokenErr.Error()
				}
				blocked[info.Name] = why
				continue
			}
			peers = append(peers, p)
		}
	}
	if err := r.ep.SetPeers(peers); err != nil {
		r.log.Error("IKE does not take the connections", zap.Error(err))
		for name := range conns {
			blocked[name] = err.Error()
		}
	}
	for name, c := range conns {
		c.mu.Lock()
		if why, ok := blocked[name]; ok {
			if c.blockedBy != why {
				r.log.Warn("connection blocked", zap.String("connection", name), zap.String("why", why))
			}
			c.block(why, now)
			c.takeHeld()
		} else {
			c.unblock(now)
		}
		c.mu.Unlock()
	}
}

// peerConfig makes of one connection of the policy what IKE needs to know.
func (r *Router) peerConfig(table *policy.Table, info *policy.ConnectionInfo, creds []pkichip.Credential) (*ike.PeerConfig, error) {
	suites := table.Suites()
	life := table.Lifetimes()
	ikeProps, err := suite.ParseProposals(suite.ProtocolIKE, suites.IKE)
	if err != nil {
		return nil, fmt.Errorf("policy, suites.ike: %w", err)
	}
	espProps, err := suite.ParseProposals(suite.ProtocolESP, suites.ESP)
	if err != nil {
		return nil, fmt.Errorf("policy, suites.esp: %w", err)
	}
	p := &ike.PeerConfig{
		Name: info.Name, Remote: info.Gateways, Proposals: ikeProps,
		RekeyIKE: time.Duration(life.IKE), RekeyChild: time.Duration(life.Child), LivenessInterval: time.Duration(life.Liveness),
		Retransmit: retransmit,
		ForceEncap: !info.NativeESP || r.cfg.Network.ForceEncap,
		TCP:        tcpModes[r.cfg.Network.TCP], TCPPort: r.cfg.Network.TCPPort,
		Mobike: info.Moves != policy.MovesNever, MoveNamed: info.Moves == policy.MovesNamed,
		Childless: info.Childless,
	}
	child := ike.ChildConfig{Name: info.Name, Proposals: espProps, Queues: len(r.dp.queues)}
	for _, x := range info.Local {
		child.LocalTS = append(child.LocalTS, ike.PrefixSelector(x))
	}
	for _, x := range info.Remote {
		child.RemoteTS = append(child.RemoteTS, ike.PrefixSelector(x))
	}
	p.Children = []ike.ChildConfig{child}

	device := credential(creds, 1, "")
	if device == nil {
		return nil, errors.New("the token has no device certificate; check it with: wardgate token check")
	}
	deviceID, err := ownIdentity(device.Cert)
	if err != nil {
		return nil, fmt.Errorf("device certificate: %w", err)
	}
	peerDevice, err := ike.ParseIdentity(info.DeviceID)
	if err != nil {
		return nil, err
	}
	if info.Auth == policy.AuthPSK {
		// CHAN-2: a pre-shared key that the SP's policy pushed
		p.LocalAuth = []ike.LocalAuth{{ID: deviceID, PSK: info.PSK.Bytes(), Role: "device"}}
		p.RemoteAuth = []ike.RemoteAuth{{IDs: []ike.Identity{peerDevice}, PSK: info.PSK.Bytes(), RelatedToRound: -1, Role: "device"}}
		return p, r.usePPK(p, info)
	}
	service := credential(creds, 2, info.Service)
	if service == nil {
		if r.centre != nil {
			return nil, fmt.Errorf("the token has no certificate for the service %q yet; it is requested from the service provider's centre (see: wardgate status)", info.Service)
		}
		return nil, fmt.Errorf("the token has no certificate for the service %q; the service provider has to issue one (see: wardgate token csr --service %s)", info.Service, info.Service)
	}
	serviceID, err := ownIdentity(service.Cert)
	if err != nil {
		return nil, fmt.Errorf("certificate of service %q: %w", info.Service, err)
	}
	peerService, err := ike.ParseIdentity(info.ServiceID)
	if err != nil {
		return nil, err
	}
	p.LocalAuth = []ike.LocalAuth{
		{ID: deviceID, Chain: chainDER(device), Signer: device.Signer, OCSP: r.staples.of(device), Role: "device"},
		{ID: serviceID, Chain: chainDER(service), Signer: service.Signer, OCSP: r.staples.of(service), Role: "service"},
	}
	strict := table.RevocationRequired()
	p.RemoteAuth = []ike.RemoteAuth{
		{IDs: []ike.Identity{peerDevice}, Anchors: table.DeviceAnchors(), CRLs: table.DeviceCRLs(), RequireCRL: strict, RelatedToRound: -1, Role: "device"},
		{IDs: []ike.Identity{peerService}, Anchors: info.Anchors, CRLs: info.CRLs, RequireCRL: strict, RelatedToRound: 0, Role: "service"},
	}
	return p, r.usePPK(p, info)
}

func credential(creds []pkichip.Credential, layer int, service string) *pkichip.Credential {
	for i := range creds {
		c := &creds[i]
		if int(c.Layer) == layer && (layer == 1 || c.Service == service) && c.Cert != nil && c.Signer != nil {
			return c
		}
	}
	return nil
}

func chainDER(c *pkichip.Credential) [][]byte {
	chain := [][]byte{c.Cert.Raw}
	for _, x := range c.Chain {
		chain = append(chain, x.Raw)
	}
	return chain
}

// ownIdentity is what this appliance calls itself: the first dNSName of the certificate
// (RFC 4945, section 3.1: what the certificate vouches for), else its subject.
func ownIdentity(cert *x509.Certificate) (ike.Identity, error) {
	if len(cert.DNSNames) > 0 {
		return ike.ParseIdentity(cert.DNSNames[0])
	}
	if len(cert.RawSubject) <= 2 {
		return ike.Identity{}, errors.New("it names its holder neither by a dNSName nor by a subject; expected one of them")
	}
	return ike.DNIdentity(cert.RawSubject), nil
}

// espLimits are the limits of a CHILD SA by use. The hard limit lies far enough behind the soft
// one for a rekey at full speed (RFC 4303, section 3.3.3; RFC 7296, section 2.8).
func (r *Router) espLimits() esp.Limits {
	t := r.table()
	if t == nil {
		return esp.Limits{}
	}
	life := t.Lifetimes()
	return esp.Limits{
		SoftPackets: life.ChildPackets, HardPackets: beyond(life.ChildPackets),
		SoftBytes: life.ChildBytes, HardBytes: beyond(life.ChildBytes),
	}
}

func beyond(soft uint64) uint64 {
	if soft == 0 {
		return 0
	}
	return soft + soft/4 + 1
}

func joinOr(s []string, otherwise string) string {
	if len(s) == 0 {
		return otherwise
	}
	return strings.Join(s, " + ")
}
