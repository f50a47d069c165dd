// Package nets plans the networks between containers: a bridge for each declared one,
// and one between the shim and its upstream container. Pure.
package nets

import (
	"fmt"
	"net"
	"sort"
	"strings"

	"refguest/internal/conf"
)

// Bridge is one network; its address is the guest's own on it.
type Bridge struct {
	Name    string
	Address net.IPNet
}

// Link is a container's place on a network.
type Link struct {
	Network string
	Address net.IPNet
	Gateway net.IP
}

// Plan is who is where.
type Plan struct {
	Bridges []Bridge
	Links   map[string][]Link // by container, the one with the default route first
}

// The public guest's addresses between the shim and its upstream container.
var (
	shimGateway  = net.IPNet{IP: net.IPv4(172, 31, 255, 1).To4(), Mask: net.CIDRMask(30, 32)}
	shimUpstream = net.IPNet{IP: net.IPv4(172, 31, 255, 2).To4(), Mask: net.CIDRMask(30, 32)}
)

// Upstream is where the shim finds its upstream container.
func Upstream() net.IP { return shimUpstream.IP }

// Make gives every network a /24 of its own and every member an address in it. A network
// with a way out comes first among a container's; here none has one.
func Make(w *conf.Workload) Plan {
	plan := Plan{Links: map[string][]Link{}}
	for number, name := range sortedNames(w.Networks) {
		address := func(host int) net.IPNet {
			return net.IPNet{IP: net.IPv4(172, 30, byte(number), byte(host)).To4(), Mask: net.CIDRMask(24, 32)}
		}
		gateway := address(1)
		plan.Bridges = append(plan.Bridges, Bridge{name, gateway})
		open := w.Networks[name] != nil && w.Networks[name].Egress != "" && w.Networks[name].Egress != "closed"
		for index, c := range w.Containers {
			for _, joined := range c.Networks {
				if joined == name {
					link := Link{name, address(index + 2), gateway.IP}
					plan.Links[c.Name] = placed(plan.Links[c.Name], link, open)
				}
			}
		}
	}
	if up := w.Shim.UpstreamContainer; up != "" {
		plan.Bridges = append(plan.Bridges, Bridge{conf.ShimNetwork, shimGateway})
		plan.Links[up] = append(plan.Links[up], Link{conf.ShimNetwork, shimUpstream, shimGateway.IP})
	}
	return plan
}

func placed(links []Link, link Link, first bool) []Link {
	if first {
		return append([]Link{link}, links...)
	}
	return append(links, link)
}

// Hosts is the table of names of a container: itself, and who shares a network with it.
func (p Plan) Hosts(container, hostname string) string {
	var out strings.Builder
	out.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost\n")
	for _, own := range p.Links[container] {
		fmt.Fprintf(&out, "%s\t%s\n", own.Address.IP, hostname)
	}
	for _, own := range p.Links[container] {
		for _, other := range p.members(own.Network) {
			for _, link := range p.Links[other] {
				if link.Network == own.Network && own.Network != conf.ShimNetwork {
					fmt.Fprintf(&out, "%s\t%s\n", link.Address.IP, other)
				}
			}
		}
	}
	return out.String()
}

func (p Plan) members(network string) []string {
	var out []string
	for name, links := range p.Links {
		for _, link := range links {
			if link.Network == network {
				out = append(out, name)
			}
		}
	}
	sort.Strings(out)
	return out
}

func sortedNames(networks map[string]*conf.Network) []string {
	out := make([]string, 0, len(networks))
	for name := range networks {
		out = append(out, name)
	}
	sort.Strings(out)
	return out
}
