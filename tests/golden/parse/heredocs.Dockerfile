FROM alpine
RUN <<EOF
echo $HOME
EOF
RUN cat <<-A 3<<'B C' > /dev/null
	indented
	A
as it is
B C
COPY --chmod=644 <<one <<"two.txt" plain /dir/
$expanded
one
$kept
two.txt
ONBUILD RUN <<E
later
E
