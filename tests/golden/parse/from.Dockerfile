FROM
FROM a b
FROM a AS
FROM a AS b c
FROM a AS Ünder
