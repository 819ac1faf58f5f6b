{{/* The variables of installer and node role. Those of the user come last and replace ours, so none is there twice. */}}
{{- define "node.env" -}}
{{- $paths := include "node.paths" . | fromYaml -}}
{{- $own := dict
  "AMBIENT_ENABLED" .Values.ambient.enabled
  "AMBIENT_ENABLEMENT_SELECTOR" (.Values.ambient.enablementSelectors | toYaml)
  "AMBIENT_DNS_CAPTURE" .Values.ambient.dnsCapture
  "AMBIENT_IPV6" .Values.ambient.ipv6
  "AMBIENT_RECONCILE_POD_RULES_ON_STARTUP" .Values.ambient.reconcileIptablesOnStartup
  "ENABLE_AMBIENT_DETECTION_RETRY" .Values.ambient.enableAmbientDetectionRetry
  "ALLOW_SWITCH_TO_HOST_NS" (not .Values.ambient.shareHostNetworkNamespace)
  "CHAINED_CNI_PLUGIN" $paths.chained
  "ISTIO_OWNED_CNI_CONFIG" .Values.istioOwnedCNIConfig
  "EXCLUDE_NAMESPACES" (join "," .Values.excludeNamespaces)
  "NATIVE_NFTABLES" .Values.global.nativeNftables
-}}
{{- with $paths.file }}{{- $_ := set $own "CNI_CONF_NAME" . }}{{- end -}}
{{- with .Values.istioOwnedCNIConfigFileName }}{{- $_ := set $own "ISTIO_OWNED_CNI_CONFIG_FILENAME" . }}{{- end -}}
{{- if .Values.pluginServiceAccount.create }}
{{- $_ := set $own "CNI_PLUGIN_SERVICE_ACCOUNT" (include "node.pluginAccount" .) }}
{{- end -}}
{{- range $name, $value := .Values.env }}{{- $_ := set $own $name $value }}{{- end -}}
{{- range $name, $value := $own }}
- name: {{ $name }}
  value: {{ $value | toString | quote }}
{{- end }}
{{- range $name, $path := dict "NODE_NAME" "spec.nodeName" "POD_NAME" "metadata.name" "POD_NAMESPACE" "metadata.namespace" }}
- name: {{ $name }}
  valueFrom: {fieldRef: {fieldPath: {{ $path }}}}
{{- end }}
{{- end }}
