"""Rules that other programs make, as they make them.

Docker's are those that its own tests record (moby/moby, integration/network/bridge/iptablesdoc,
generated/new-daemon.md), with the policy that it sets when it turns forwarding on itself. ufw's
are of its rules files (conf/before.rules, conf/after.rules) and ufw-init; firewalld's as it lists
them (miniupnp/miniupnp#806), with its default zone; libvirt's of network_nftables.c; a WireGuard
router's of the PostUp lines that its users have.
"""

from __future__ import annotations

DOCKER = """
iptables -P FORWARD DROP
iptables -N DOCKER
iptables -N DOCKER-BRIDGE
iptables -N DOCKER-CT
iptables -N DOCKER-FORWARD
iptables -N DOCKER-INTERNAL
iptables -N DOCKER-USER
iptables -A FORWARD -j DOCKER-USER
iptables -A FORWARD -j DOCKER-FORWARD
iptables -A DOCKER-FORWARD -j DOCKER-CT
iptables -A DOCKER-FORWARD -j DOCKER-INTERNAL
iptables -A DOCKER-FORWARD -j DOCKER-BRIDGE
iptables -A DOCKER-FORWARD -i docker0 -j ACCEPT
iptables -A DOCKER-CT -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
iptables -A DOCKER-BRIDGE -o docker0 -j DOCKER
iptables -A DOCKER ! -i docker0 -o docker0 -j DROP
iptables -t nat -N DOCKER
iptables -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
iptables -t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
"""

UFW = """
iptables -P FORWARD DROP
iptables -N ufw-before-forward
iptables -N ufw-user-forward
iptables -N ufw-after-forward
iptables -N ufw-reject-forward
iptables -A FORWARD -j ufw-before-forward
iptables -A FORWARD -j ufw-after-forward
iptables -A FORWARD -j ufw-reject-forward
iptables -A ufw-before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
iptables -A ufw-before-forward -p icmp --icmp-type echo-request -j ACCEPT
iptables -A ufw-before-forward -j ufw-user-forward
"""
UFW_REJECTS = UFW.replace("-P FORWARD DROP", "-P FORWARD ACCEPT") + (
    "iptables -A ufw-reject-forward -j REJECT\n"
)
UFW_ALLOWS = """
iptables -A ufw-user-forward -i {bridge} -j ACCEPT
iptables -A ufw-user-forward -o {bridge} -j ACCEPT
"""

FIREWALLD = """
add table inet firewalld
add chain inet firewalld filter_FORWARD {{ type filter hook forward priority filter + 10; }}
add chain inet firewalld filter_FORWARD_POLICIES
add chain inet firewalld filter_FWD_public
add chain inet firewalld filter_FWD_trusted
add rule inet firewalld filter_FORWARD ct state {{ established, related }} accept
add rule inet firewalld filter_FORWARD ct status dnat accept
add rule inet firewalld filter_FORWARD iifname "lo" accept
add rule inet firewalld filter_FORWARD ct state invalid drop
add rule inet firewalld filter_FORWARD jump filter_FORWARD_POLICIES
add rule inet firewalld filter_FORWARD reject with icmpx admin-prohibited
add rule inet firewalld filter_FORWARD_POLICIES jump filter_FWD_public
add rule inet firewalld filter_FORWARD_POLICIES reject with icmpx admin-prohibited
"""
FIREWALLD_TRUSTS = """
insert rule inet firewalld filter_FORWARD_POLICIES iifname "{bridge}" accept
"""

LIBVIRT = """
add table ip libvirt_network
add chain ip libvirt_network forward {{ type filter hook forward priority filter; policy accept; }}
add chain ip libvirt_network guest_output
add chain ip libvirt_network guest_input
add chain ip libvirt_network guest_cross
add rule ip libvirt_network forward counter jump guest_cross
add rule ip libvirt_network forward counter jump guest_input
add rule ip libvirt_network forward counter jump guest_output
add rule ip libvirt_network guest_output iifname "virbr0" ip saddr 192.168.122.0/24 counter accept
add rule ip libvirt_network guest_output iifname "virbr0" counter reject
add rule ip libvirt_network guest_input oifname "virbr0" ip daddr 192.168.122.0/24 ct state related,established counter accept
add rule ip libvirt_network guest_input oifname "virbr0" counter reject
add rule ip libvirt_network guest_cross iifname "virbr0" oifname "virbr0" counter accept
add chain ip libvirt_network guest_nat {{ type nat hook postrouting priority srcnat; }}
add rule ip libvirt_network guest_nat ip saddr 192.168.122.0/24 ip daddr != 192.168.122.0/24 counter masquerade
"""  # noqa: E501 - rules are read line by line

WIREGUARD = """
iptables -A FORWARD -i wg0 -j ACCEPT
iptables -A FORWARD -o wg0 -j ACCEPT
iptables -t nat -A POSTROUTING -o {uplink} -j MASQUERADE
"""

LATER_DROP = """
add table inet hardening
add chain inet hardening fw {{ type filter hook forward priority 100; policy accept; }}
add rule inet hardening fw ct state established,related accept
add rule inet hardening fw counter drop
"""
VMAP_DROP = """
add table inet hardening
add chain inet hardening fw {{ type filter hook forward priority 0; policy drop; }}
add rule inet hardening fw ct state vmap {{ established : accept, invalid : drop }}
"""
MASTERED = """
add table inet hardening
add set inet hardening bad {{ type ipv4_addr; elements = {{ 203.0.113.9 }}; }}
add chain inet hardening fw {{ type filter hook forward priority 0; policy drop; }}
add rule inet hardening fw ip saddr @bad drop
add rule inet hardening fw tcp dport 25 drop
add rule inet hardening fw oifname "{bridge}" tcp dport {{ 443, 4430 }} accept
add rule inet hardening fw oifname "{bridge}" ct state established accept
add rule inet hardening fw iifname {{ "{bridge}", "other*" }} accept
"""
